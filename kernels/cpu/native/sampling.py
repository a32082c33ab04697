"""Tokens and log-probabilities from logits, without a sort: cuts are found by histogram (see `cut`)."""

from vllm_nb.kernels.cpu.layout import LOGITS_CHUNK as CHUNK
from vllm_nb.kernels.cpu.native.cut import MINUS_INFINITY, find_cut, load_row
from vllm_nb.kernels.cpu.native.functions import exp
from vllm_nb.kernels.cpu.native.kernel import arg, header, helper, kernel, scratch, share, wait_for_all
from vllm_nb.kernels.cpu.native.simd import (
    count_bits,
    load_f32,
    load_i32,
    load_i64,
    load_part,
    lowest_bit,
    mask_less,
    mask_nan,
    max_lanes,
    maximum,
    splat,
    store_f32,
    store_f64,
    store_i32,
    store_i64,
    store_part,
    sum_lanes,
    where_less,
    zeros,
)

_INFINITY = float("inf")
NONE = -1  # the token of a row that has a NaN or no finite greatest logit


@helper
def _find_greatest(x: int, first: int, last: int, count: int, out: int) -> None:
    """out: (greatest value, its lowest index or NONE after a NaN), 16 bytes, of x[first:last]"""
    greatest = splat(MINUS_INFINITY)
    nans = 0
    for i in range(first, last, 16):
        value = load_row(x, i, count)
        nans |= mask_nan(value)
        greatest = maximum(greatest, value)
    top = max_lanes(greatest)
    index = NONE
    if nans == 0:
        for i in range(first, last, 16):
            below = mask_less(load_row(x, i, count), splat(top))
            if below != 0xFFFF:
                index = i + lowest_bit(~below)
                break
    store_f32(out, top)
    store_i64(out + 8, index)


@helper
def _find_greatest_of_all(
    args: int, logits: int, rows: int, count: int, found: int, step: int, thread: int, threads: int
) -> None:
    """Every row's chunks, dealt out to all threads; ends with a barrier."""
    chunks = (count + CHUNK - 1) // CHUNK
    start, stop = share(rows * chunks, thread, threads)
    for item in range(start, stop):
        first = item % chunks * CHUNK
        _find_greatest(
            logits + 4 * count * (item // chunks), first, min(count, first + CHUNK), count, found + 16 * item
        )
    wait_for_all(step, threads)


@helper
def _greatest(found: int, row: int, chunks: int) -> tuple[float, int]:
    """(value, index or NONE) of a row"""
    top, index = load_f32(found + 16 * row * chunks), load_i64(found + 16 * row * chunks + 8)
    for chunk in range(row * chunks + 1, (row + 1) * chunks):
        value, at = load_f32(found + 16 * chunk), load_i64(found + 16 * chunk + 8)
        if at == NONE:
            index = NONE
        elif index != NONE and value > top:
            top, index = value, at
    return top, index if -_INFINITY < top < _INFINITY else NONE


@helper
def _weigh(x: int, count: int, top: float, temperature: float, weights: int) -> float:
    """weights = exp((x - top) / temperature); returns their sum"""
    total = 0.0
    inverse = splat(1.0 / temperature)
    for i in range(0, count, 16):
        value = exp((load_row(x, i, count) - splat(top)) * inverse)
        store_part(weights + 4 * i, value, min(16, count - i))
        total += sum_lanes(value)
    return total


@helper
def _kept_mass(x: int, weights: int, count: int, floor: float, least_weight: float) -> float:
    """Zero the weights of what is cut off; the sum of the others."""
    total = 0.0
    for i in range(0, count, 16):
        part = min(16, count - i)
        value, weight = load_row(x, i, count), load_part(weights + 4 * i, part, 0.0)
        weight = where_less(value, splat(floor), zeros(), weight)
        weight = where_less(weight, splat(least_weight), zeros(), weight)
        store_part(weights + 4 * i, weight, part)
        total += sum_lanes(weight)
    return total


@helper
def _draw_lane(weights: int, first: int, stop: int, target: float) -> int:
    """The first of weights[first:stop] at which their sum exceeds the target; else the last that is not 0."""
    reached, last = 0.0, first
    for i in range(first, stop):
        weight = load_f32(weights + 4 * i)
        if weight > 0.0:
            last = i
            reached += weight
            if reached > target:
                break
    return last


@helper
def _draw(weights: int, count: int, target: float) -> int:
    """The first token, in order of ids, at which the sum of weights exceeds the target."""
    reached, last = 0.0, 0
    for i in range(0, count, 16):
        here = float(sum_lanes(load_part(weights + 4 * i, min(16, count - i), 0.0)))
        if here > 0.0:
            last = i
            if reached + here > target:
                return _draw_lane(weights, i, min(count, i + 16), target - reached)
            reached += here
    return _draw_lane(weights, last, min(count, last + 16), _INFINITY)  # rounding: the last one that was kept


@helper
def _sample_row(
    x: int,
    count: int,
    greatest: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: float,
    room: int,
) -> int:
    weights, room = room, room + 4 * count + 64
    mass = _weigh(x, count, greatest, temperature, weights)
    floor = MINUS_INFINITY
    if 0 < top_k < count:
        floor = find_cut(x, weights, count, floor, greatest, temperature, mass, False, float(top_k), room)
        mass = _kept_mass(x, weights, count, floor, 0.0)
    if top_p < 1.0:
        floor = find_cut(x, weights, count, floor, greatest, temperature, mass, True, top_p * mass, room)
    mass = _kept_mass(x, weights, count, floor, min_p)
    return _draw(weights, count, uniform * mass)


@kernel
def sample(args: int, step: int, thread: int, threads: int) -> None:
    """row kind, logits, vocabulary, temperature, top_k, top_p, min_p, uniform, found (16 bytes a chunk), out"""
    rows, logits, count = header(step, arg(args, 0)), arg(args, 1), arg(args, 2)
    found, out, room = arg(args, 8), arg(args, 9), scratch(step, thread)
    chunks = (count + CHUNK - 1) // CHUNK
    _find_greatest_of_all(args, logits, rows, count, found, step, thread, threads)
    for row in range(thread, rows, threads):
        greatest, token = _greatest(found, row, chunks)
        temperature = load_f32(arg(args, 3) + 4 * row)
        if temperature > 0.0 and token != NONE:
            token = _sample_row(
                logits + 4 * count * row, count, greatest, temperature,
                load_i32(arg(args, 4) + 4 * row), load_f32(arg(args, 5) + 4 * row), load_f32(arg(args, 6) + 4 * row),
                load_f32(arg(args, 7) + 4 * row), room,
            )  # fmt: skip
        store_i32(out + 4 * row, token)


@helper
def _insert(values: int, ids: int, num_top: int, value: float, token: int) -> None:
    """Into a list in falling order; what falls off its end is lost."""
    place = num_top - 1
    while place > 0 and load_f32(values + 4 * (place - 1)) < value:
        store_f32(values + 4 * place, load_f32(values + 4 * (place - 1)))
        store_i32(ids + 4 * place, load_i32(ids + 4 * (place - 1)))
        place -= 1
    store_f32(values + 4 * place, value)
    store_i32(ids + 4 * place, token)


@helper
def _likeliest(x: int, count: int, num_top: int, values: int, ids: int) -> None:
    """The num_top greatest values of a row and their ids, the lower id first of equals."""
    for place in range(num_top):
        store_f32(values + 4 * place, MINUS_INFINITY)
        store_i32(ids + 4 * place, 0)
    seen = 0
    for i in range(0, count, 16):
        mask = 0xFFFF
        if seen >= num_top:
            mask = mask_less(splat(load_f32(values + 4 * (num_top - 1))), load_row(x, i, count))
        while mask != 0:
            at = i + lowest_bit(mask)
            mask &= mask - 1
            if at >= count:
                break
            value = load_f32(x + 4 * at)
            if seen < num_top or value > load_f32(values + 4 * (num_top - 1)):
                _insert(values, ids, num_top, value, at) if seen >= num_top else _append(values, ids, seen, value, at)
                seen += 1


@helper
def _append(values: int, ids: int, seen: int, value: float, token: int) -> None:
    _insert(values, ids, seen + 1, value, token)


@kernel
def token_logprobs(args: int, step: int, thread: int, threads: int) -> None:
    """row kind, logits, vocabulary, token_ids, num_top, found, then out: rank, top ids, top logits, greatest, and the
    float64 sum of exp(logit - greatest); all but `found` by row"""
    rows, logits, count, num_top = header(step, arg(args, 0)), arg(args, 1), arg(args, 2), arg(args, 4)
    chunks = (count + CHUNK - 1) // CHUNK
    _find_greatest_of_all(args, logits, rows, count, arg(args, 5), step, thread, threads)
    for row in range(thread, rows, threads):
        x = logits + 4 * count * row
        greatest, _ = _greatest(arg(args, 5), row, chunks)
        chosen = splat(load_f32(x + 4 * load_i32(arg(args, 3) + 4 * row)))
        total, above = 0.0, 0
        for i in range(0, count, 16):
            value = load_row(x, i, count)
            above += count_bits(mask_less(chosen, value))
            total += sum_lanes(exp(value - splat(greatest)))
        store_i32(arg(args, 6) + 4 * row, above + 1)
        if num_top > 0:
            _likeliest(x, count, num_top, arg(args, 8) + 4 * num_top * row, arg(args, 7) + 4 * num_top * row)
        store_f32(arg(args, 9) + 4 * row, greatest)
        store_f64(arg(args, 10) + 8 * row, total)
