"""Activations for `linear`: quantised to int8 with one scale per 32, or rounded and padded floats."""

from vllm_nb.kernels.cpu.formats import BLOCK
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
    splat,
    splat_int,
    store,
    store_bfloats,
    store_bytes,
    store_f32,
    store_i32,
    sum_int_lanes,
    zeros,
)
from vllm_nb.kernels.cpu.native.tile import FLIP


@helper
def _quantize_block(low: Floats, high: Floats, q: int, scale: int, total: int, int_sums: int, flip: int) -> None:
    """32 floats -> 32 int8 (+ flip), their scale, the sum of what they stand for, two sums of 16 int8."""
    # compared as integers, where NaN is greater than all: it must reach the scale, and so the whole row
    largest = bits_to_float(max_int_lanes(max_ints(as_ints(absolute(low)), as_ints(absolute(high)))))
    inverse = splat(127.0 / largest if largest > 0.0 else 0.0)
    low_ints, high_ints = nearest(low * inverse), nearest(high * inverse)
    store_bytes(q, low_ints + splat_int(flip))
    store_bytes(q + 16, high_ints + splat_int(flip))
    low_sum, high_sum = sum_int_lanes(low_ints), sum_int_lanes(high_ints)
    step = largest / 127.0
    store_f32(scale, step)
    store_f32(total, step * (low_sum + high_sum))
    store_i32(int_sums, low_sum)
    store_i32(int_sums + 4, high_sum)


@helper
def quantize_row(x: int, width: int, q: int, scale: int, total: int, int_sums: int, flip: int) -> None:
    """One row of `width` floats; the last block is filled up with zeros."""
    whole = width // BLOCK
    for block in range(whole):
        at = x + 4 * BLOCK * block
        _quantize_block(
            load(at), load(at + 64), q + BLOCK * block, scale + 4 * block, total + 4 * block, int_sums + 8 * block, flip
        )
    rest = width - BLOCK * whole
    if rest > 0:
        at = x + 4 * BLOCK * whole
        low, high = load_part(at, min(rest, 16), 0.0), zeros()
        if rest > 16:
            high = load_part(at + 64, rest - 16, 0.0)
        _quantize_block(low, high, q + BLOCK * whole, scale + 4 * whole, total + 4 * whole, int_sums + 8 * whole, flip)


@kernel
def quantize(args: int, step: int, thread: int, threads: int) -> None:
    """row kind, x, width, q, scales, sums, int_sums. With several rows q is raised by FLIP, as `gemm` wants it."""
    rows = header(step, arg(args, 0))
    x, width = arg(args, 1), arg(args, 2)
    q, scales, sums, int_sums = arg(args, 3), arg(args, 4), arg(args, 5), arg(args, 6)
    blocks = (width + BLOCK - 1) // BLOCK
    flip = 0 if rows == 1 else FLIP
    start, stop = share(rows, thread, threads)
    for row in range(start, stop):
        at = row * blocks
        quantize_row(
            x + 4 * width * row, width, q + BLOCK * at, scales + 4 * at, sums + 4 * at, int_sums + 8 * at, flip
        )


@kernel
def round_rows(args: int, step: int, thread: int, threads: int) -> None:
    """row kind, x, width, out, to_bfloats: rows padded with zeros to a multiple of 32 values."""
    rows = header(step, arg(args, 0))
    x, width, out, to_bfloats = arg(args, 1), arg(args, 2), arg(args, 3), arg(args, 4)
    padded = (width + BLOCK - 1) // BLOCK * BLOCK
    start, stop = share(rows, thread, threads)
    for row in range(start, stop):
        for i in range(0, padded, 16):
            at = x + 4 * (width * row + i)
            value = load(at) if i + 16 <= width else load_part(at, max(0, width - i), 0.0)
            if to_bfloats != 0:
                store_bfloats(out + 2 * (padded * row + i), value)
            else:
                store(out + 4 * (padded * row + i), value)
