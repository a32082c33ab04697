"""Where top_k and top_p cut off.

A cut is the smallest set of likeliest tokens whose weight, a count or a probability mass, reaches a target. Tokens fall
into bins by their distance to the greatest logit, the bin where the target is reached is gathered, and cut into bins
again, until few enough are left to put in order.
"""

from vllm_nb.kernels.cpu.layout import CUT_BINS as BINS
from vllm_nb.kernels.cpu.native.kernel import helper
from vllm_nb.kernels.cpu.native.simd import (
    Floats,
    load,
    load_f32,
    load_f64,
    load_i64,
    load_part,
    lowest_bit,
    mask_less,
    splat,
    store_f32,
    store_f64,
    store_i64,
)

REACH = 16.0  # in units of the temperature: tokens further from the greatest logit share the last bin
FEW = 32  # candidates that are put in order one by one
MINUS_INFINITY = float("-inf")


@helper
def load_row(x: int, i: int, count: int) -> Floats:
    """Lanes i .. i + 15 of a row with `count` values; -inf beyond its end."""
    return load(x + 4 * i) if i + 16 <= count else load_part(x + 4 * i, count - i, MINUS_INFINITY)


@helper
def _clear_bins(bins: int) -> None:
    for n in range(BINS):
        store_i64(bins + 16 * n, 0)
        store_f64(bins + 16 * n + 8, 0.0)


@helper
def _bin(value: float, greatest: float, width: float) -> int:
    return int(min((greatest - value) * width, BINS - 1.0))


@helper
def _find_bin(bins: int, by_mass: bool, target: float) -> tuple[int, float]:
    """(the bin in which the target is reached, what is reached before it)"""
    reached = 0.0
    for n in range(BINS):
        here = load_f64(bins + 16 * n + 8) if by_mass else float(load_i64(bins + 16 * n))
        if here > 0.0 and reached + here >= target:
            return n, reached
        reached += here
    return BINS, reached


@helper
def _gather_bin(
    x: int, weights: int, count: int, floor: float, wanted: int, greatest: float, width: float, out: int
) -> int:
    """(value, weight) of the tokens of one bin and at least `floor`, to out; returns their number."""
    kept = 0
    for i in range(0, count, 16):
        value = load_row(x, i, count)
        # a margin around the bin first, 16 at a time; then exactly
        mask = 0xFFFF & ~mask_less(value, splat(greatest - (wanted + 2) / width))
        if wanted == BINS - 1:
            mask = 0xFFFF
        while mask != 0:
            lane = lowest_bit(mask)
            mask &= mask - 1
            if i + lane >= count:
                break
            one = load_f32(x + 4 * (i + lane))
            if one >= floor and one > MINUS_INFINITY and _bin(one, greatest, width) == wanted:
                store_f32(out + 8 * kept, one)
                store_f32(out + 8 * kept + 4, load_f32(weights + 4 * (i + lane)))
                kept += 1
    return kept


@helper
def _settle(candidates: int, count: int, by_mass: bool, target: float, reached: float) -> float:
    """Put few candidates in falling order; the value of the one with which the target is reached."""
    for i in range(1, count):
        value, weight = load_f32(candidates + 8 * i), load_f32(candidates + 8 * i + 4)
        j = i
        while j > 0 and load_f32(candidates + 8 * (j - 1)) < value:
            store_i64(candidates + 8 * j, load_i64(candidates + 8 * (j - 1)))
            j -= 1
        store_f32(candidates + 8 * j, value)
        store_f32(candidates + 8 * j + 4, weight)
    for i in range(count):
        reached += load_f32(candidates + 8 * i + 4) if by_mass else 1.0
        if reached >= target:
            return load_f32(candidates + 8 * i)
    return load_f32(candidates + 8 * (count - 1))


@helper
def _refine(candidates: int, count: int, by_mass: bool, target: float, reached: float, bins: int) -> float:
    """The value with which the target is reached, among candidates of one bin."""
    while count > FEW:
        greatest, least = load_f32(candidates), load_f32(candidates)
        for i in range(1, count):
            greatest = max(greatest, load_f32(candidates + 8 * i))
            least = min(least, load_f32(candidates + 8 * i))
        if greatest == least:
            return least
        width = BINS / (float(greatest) - least)
        _clear_bins(bins)
        for i in range(count):
            _add_to_bin(bins, _bin(load_f32(candidates + 8 * i), greatest, width), load_f32(candidates + 8 * i + 4))
        wanted, before = _find_bin(bins, by_mass, target - reached)
        if wanted == BINS:  # rounding: the target is reached with the last one
            return least
        reached += before
        kept = 0
        for i in range(count):
            if _bin(load_f32(candidates + 8 * i), greatest, width) == wanted:
                store_i64(candidates + 8 * kept, load_i64(candidates + 8 * i))
                kept += 1
        count = kept
    return _settle(candidates, count, by_mass, target, reached)


@helper
def _add_to_bin(bins: int, number: int, weight: float) -> None:
    store_i64(bins + 16 * number, load_i64(bins + 16 * number) + 1)
    store_f64(bins + 16 * number + 8, load_f64(bins + 16 * number + 8) + weight)


@helper
def _fill_bins(
    x: int, weights: int, count: int, floor: float, greatest: float, width: float, mass: float, bins: int
) -> None:
    """Histogram of the tokens of at least `floor`. The last bin takes what is far off, by subtraction."""
    _clear_bins(bins)
    near, near_mass = 0, 0.0
    edge = splat(floor if floor > MINUS_INFINITY else greatest - BINS / width)
    for i in range(0, count, 16):
        mask = 0xFFFF & ~mask_less(load_row(x, i, count), edge)
        while mask != 0:
            at = i + lowest_bit(mask)
            mask &= mask - 1
            if at >= count:
                break
            weight = load_f32(weights + 4 * at)
            _add_to_bin(bins, _bin(load_f32(x + 4 * at), greatest, width), weight)
            near += 1
            near_mass += weight
    if floor == MINUS_INFINITY:
        last = bins + 16 * (BINS - 1)
        store_i64(last, load_i64(last) + count - near)
        store_f64(last + 8, load_f64(last + 8) + max(0.0, mass - near_mass))


@helper
def find_cut(
    x: int,
    weights: int,
    count: int,
    floor: float,
    greatest: float,
    temperature: float,
    mass: float,
    by_mass: bool,
    target: float,
    room: int,
) -> float:
    """The least logit of the smallest set of likeliest tokens, none below `floor`, whose weight reaches the target."""
    bins, candidates = room, room + 16 * BINS
    width = BINS / (REACH * temperature)
    _fill_bins(x, weights, count, floor, greatest, width, mass, bins)
    wanted, reached = _find_bin(bins, by_mass, target)
    if wanted == BINS:
        return floor
    kept = _gather_bin(x, weights, count, floor, wanted, greatest, width, candidates)
    return _refine(candidates, kept, by_mass, target, reached, bins) if kept > 0 else floor
