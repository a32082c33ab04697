"""Activations as the tiles of `linear` read them (see `tile`): int8 records, or rounded floats.

One row lies by itself; several lie in groups of 8, side by side. What the last group has beyond the last row is not
written, and computed with in vain.
"""

from vllm_nb.kernels.cpu.formats import BLOCK, QUADS
from vllm_nb.kernels.cpu.layout import GROUP_ROWS, RECORD_BYTES, RECORD_INT_SUMS, RECORD_SCALES, RECORD_SUMS
from vllm_nb.kernels.cpu.native.kernel import arg, header, helper, kernel, share
from vllm_nb.kernels.cpu.native.simd import (
    Floats,
    absolute,
    as_ints,
    bits_to_float,
    load,
    load_part,
    max_int_lanes,
    max_ints,
    nearest,
    pack_bytes,
    round_pairs,
    splat,
    store_f32,
    store_i32,
    store_lanes,
    sum_int_lanes,
    zeros,
)


@helper
def quantize_block(low: Floats, high: Floats, record: int, lane: int, group: int) -> None:
    """32 floats -> one row's share in a record."""
    # compared as integers, where NaN is greater than all: it must reach the scale, and so the whole row
    largest = bits_to_float(max_int_lanes(max_ints(as_ints(absolute(low)), as_ints(absolute(high)))))
    inverse = splat(127.0 / largest if largest > 0.0 else 0.0)
    low_ints, high_ints = nearest(low * inverse), nearest(high * inverse)
    store_lanes(record + 4 * lane, pack_bytes(low_ints), 4 * group)
    store_lanes(record + 4 * (lane + group * QUADS // 2), pack_bytes(high_ints), 4 * group)
    low_sum, high_sum = sum_int_lanes(low_ints), sum_int_lanes(high_ints)
    scale = largest / 127.0
    store_f32(record + RECORD_SCALES * group + 4 * lane, scale)
    store_f32(record + RECORD_SUMS * group + 4 * lane, scale * (low_sum + high_sum))
    store_i32(record + RECORD_INT_SUMS * group + 4 * lane, low_sum)
    store_i32(record + RECORD_INT_SUMS * group + 4 * (lane + group), high_sum)


@helper
def load_block(x: int, i: int, width: int) -> tuple[Floats, Floats]:
    """32 floats from number i on, zeros beyond the row's end."""
    at, rest = x + 4 * i, width - i
    if rest >= BLOCK:
        return load(at), load(at + 64)
    return load_part(at, min(rest, 16), 0.0), load_part(at + 64, rest - 16, 0.0) if rest > 16 else zeros()


@helper
def quantize_row(x: int, width: int, records: int, row: int, rows: int) -> None:
    """One row of `width` floats; the last block is filled up with zeros."""
    blocks = (width + BLOCK - 1) // BLOCK
    group = 1 if rows == 1 else GROUP_ROWS
    first = records + RECORD_BYTES * blocks * (row // group * group)
    for block in range(blocks):
        low, high = load_block(x, BLOCK * block, width)
        quantize_block(low, high, first + RECORD_BYTES * group * block, row % group, group)


@kernel
def quantize(args: int, step: int, thread: int, threads: int) -> None:
    """row kind, x, width, records"""
    rows = header(step, arg(args, 0))
    x, width, records = arg(args, 1), arg(args, 2), arg(args, 3)
    start, stop = share(rows, thread, threads)
    for row in range(start, stop):
        quantize_row(x + 4 * width * row, width, records, row, rows)


@kernel
def round_rows(args: int, step: int, thread: int, threads: int) -> None:
    """row kind, x, width, out, to_bfloats: 4 bytes a row and step, a step being an input or a pair of bfloat16."""
    rows = header(step, arg(args, 0))
    x, width, out, to_bfloats = arg(args, 1), arg(args, 2), arg(args, 3), arg(args, 4)
    group = 1 if rows == 1 else GROUP_ROWS
    padded = (width + BLOCK - 1) // BLOCK * BLOCK
    steps = padded // 2 if to_bfloats != 0 else padded
    start, stop = share(rows, thread, threads)
    for row in range(start, stop):
        target = out + 4 * (steps * (row // group * group) + row % group)
        for i in range(0, padded, BLOCK):
            low, high = load_block(x + 4 * width * row, i, width)
            if to_bfloats != 0:
                store_lanes(target + 2 * group * i, round_pairs(low), 4 * group)
                store_lanes(target + 2 * group * (i + 16), round_pairs(high), 4 * group)
            else:
                store_lanes(target + 4 * group * i, as_ints(low), 4 * group)
                store_lanes(target + 4 * group * (i + 16), as_ints(high), 4 * group)
