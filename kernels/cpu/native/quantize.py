"""Activations as the tiles of `linear` read them (see `tile`): int8 records, or rounded floats.

One row lies by itself; several lie in groups of 8, side by side. What the last group has beyond the last row is
computed with in vain.
"""

from vllm_nb.kernels.cpu.formats import BLOCK
from vllm_nb.kernels.cpu.layout import (
    GROUP_ROWS,
    RECORD_BYTES,
    RECORD_SCALES,
    RECORD_STARTS,
    RECORD_SUMS,
    ROUNDER,
    ROUNDER_BITS,
)
from vllm_nb.kernels.cpu.native.kernel import arg, header, helper, kernel, scratch, share
from vllm_nb.kernels.cpu.native.records import (
    interleave_floats,
    interleave_pairs,
    interleave_rounded,
    quantize_rows,
)
from vllm_nb.kernels.cpu.native.simd import (
    Floats,
    absolute,
    as_ints,
    bits_to_float,
    fma,
    load,
    load_part,
    max_int_lanes,
    max_ints,
    pack_bytes,
    round_floats,
    splat,
    splat_int,
    store,
    store_bfloats,
    store_bytes,
    store_i32,
    store_part,
    sum_int_lanes,
    to_floats,
    zeros,
)


@helper
def load_block(x: int, i: int, width: int) -> tuple[Floats, Floats]:
    """32 floats from number i on, zeros beyond the row's end."""
    at, rest = x + 4 * i, width - i
    if rest >= BLOCK:
        return load(at), load(at + 64)
    return load_part(at, min(rest, 16), 0.0), load_part(at + 64, rest - 16, 0.0) if rest > 16 else zeros()


@helper
def _quantize_one(x: int, i: int, width: int, record: int) -> None:
    """A single row's block: the same numbers as `quantize_rows`."""
    low, high = load_block(x, i, width)
    largest = bits_to_float(max_int_lanes(max_ints(as_ints(absolute(low)), as_ints(absolute(high)))))
    # vectors, as scalars would be divided in float64
    inverse, rounder = splat(127.0) / splat(largest) if largest > 0.0 else zeros(), splat(ROUNDER)
    low_ints, high_ints = as_ints(fma(low, inverse, rounder)), as_ints(fma(high, inverse, rounder))
    store_bytes(record, pack_bytes(low_ints))
    store_bytes(record + 16, pack_bytes(high_ints))
    low_sum = sum_int_lanes(low_ints - as_ints(rounder))
    high_sum = sum_int_lanes(high_ints - as_ints(rounder))
    scale = splat(largest) / splat(127.0)
    store_part(record + RECORD_SCALES, scale, 1)
    store_part(record + RECORD_SUMS, scale * to_floats(splat_int(low_sum + high_sum)), 1)
    store_i32(record + RECORD_STARTS, ROUNDER_BITS - 128 * (low_sum + high_sum))
    store_i32(record + RECORD_STARTS + 4, ROUNDER_BITS - 128 * low_sum)
    store_i32(record + RECORD_STARTS + 8, ROUNDER_BITS - 128 * high_sum)


@helper
def _rows_at(x: int, i: int, width: int, count: int, room: int) -> tuple[int, int]:
    """Where 32 inputs of `count` rows lie, and the bytes from row to row: in x, or at its end, filled up with zeros."""
    if i + BLOCK <= width:
        return x + 4 * i, 4 * width
    for row in range(count):
        low, high = load_block(x + 4 * width * row, i, width)
        store(room + 4 * BLOCK * row, low)
        store(room + 4 * BLOCK * row + 64, high)
    return room, 4 * BLOCK


@kernel
def quantize(args: int, step: int, thread: int, threads: int) -> None:
    """row kind, x, width, records"""
    rows = header(step, arg(args, 0))
    x, width, records = arg(args, 1), arg(args, 2), arg(args, 3)
    blocks = (width + BLOCK - 1) // BLOCK
    if rows == 1:
        start, stop = share(blocks, thread, threads)
        for block in range(start, stop):
            _quantize_one(x, BLOCK * block, width, records + RECORD_BYTES * block)
        return
    start, stop = share((rows + GROUP_ROWS - 1) // GROUP_ROWS * blocks, thread, threads)
    for item in range(start, stop):
        row, i = item // blocks * GROUP_ROWS, item % blocks * BLOCK
        count = min(GROUP_ROWS, rows - row)
        at, stride = _rows_at(x + 4 * width * row, i, width, count, scratch(step, thread))
        quantize_rows(at, stride, count, records + RECORD_BYTES * GROUP_ROWS * item)


@helper
def _round_one(x: int, i: int, width: int, out: int, to_bfloats: int, in_pairs: int) -> None:
    """A single row's block."""
    low, high = load_block(x, i, width)
    if in_pairs != 0:
        store_bfloats(out, low)
        store_bfloats(out + 32, high)
        return
    if to_bfloats != 0:
        low, high = round_floats(low), round_floats(high)
    store(out, low)
    store(out + 64, high)


@kernel
def round_rows(args: int, step: int, thread: int, threads: int) -> None:
    """row kind, x, width, out, to bfloat16, in pairs: 4 bytes a row and step, a step being an input or a pair."""
    rows = header(step, arg(args, 0))
    x, width, out, to_bfloats, in_pairs = arg(args, 1), arg(args, 2), arg(args, 3), arg(args, 4), arg(args, 5)
    blocks = (width + BLOCK - 1) // BLOCK
    size = 2 * BLOCK if in_pairs != 0 else 4 * BLOCK  # bytes of a row's block
    if rows == 1:
        start, stop = share(blocks, thread, threads)
        for block in range(start, stop):
            _round_one(x, BLOCK * block, width, out + size * block, to_bfloats, in_pairs)
        return
    start, stop = share((rows + GROUP_ROWS - 1) // GROUP_ROWS * blocks, thread, threads)
    for item in range(start, stop):
        row, i = item // blocks * GROUP_ROWS, item % blocks * BLOCK
        count, target = min(GROUP_ROWS, rows - row), out + size * GROUP_ROWS * item
        at, stride = _rows_at(x + 4 * width * row, i, width, count, scratch(step, thread))
        if in_pairs != 0:
            interleave_pairs(at, stride, count, target)
        elif to_bfloats != 0:
            interleave_rounded(at, stride, count, target)
        else:
            interleave_floats(at, stride, count, target)
