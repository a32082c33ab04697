"""RMSNorm, alone and with the residual addition before it."""

from vllm_nb.kernels.cpu.native.kernel import arg, header, helper, kernel, share
from vllm_nb.kernels.cpu.native.simd import (
    bits_to_float,
    fma,
    load,
    load_part,
    splat,
    sqrt,
    store,
    store_part,
    sum_lanes,
    zeros,
)


@helper
def inverse_rms(x: int, width: int, eps: float) -> float:
    """1 / sqrt(mean of squares + eps) of `width` floats."""
    squares = zeros()
    whole = width // 16 * 16
    for i in range(0, whole, 16):
        value = load(x + 4 * i)
        squares = fma(value, value, squares)
    if whole < width:
        value = load_part(x + 4 * whole, width - whole, 0.0)
        squares = fma(value, value, squares)
    return 1.0 / sqrt(sum_lanes(squares) / width + eps)


@helper
def _scale_row(x: int, weight: int, factor: float, width: int, out: int) -> None:
    whole = width // 16 * 16
    for i in range(0, whole, 16):
        store(out + 4 * i, load(x + 4 * i) * splat(factor) * load(weight + 4 * i))
    if whole < width:
        count = width - whole
        value = load_part(x + 4 * whole, count, 0.0) * splat(factor) * load_part(weight + 4 * whole, count, 0.0)
        store_part(out + 4 * whole, value, count)


@helper
def _add_row(x: int, y: int, width: int, out: int) -> None:
    whole = width // 16 * 16
    for i in range(0, whole, 16):
        store(out + 4 * i, load(x + 4 * i) + load(y + 4 * i))
    if whole < width:
        count = width - whole
        value = load_part(x + 4 * whole, count, 0.0) + load_part(y + 4 * whole, count, 0.0)
        store_part(out + 4 * whole, value, count)


@kernel
def rms_norm(args: int, step: int, thread: int, threads: int) -> None:
    """row kind, x, weight, eps as bits, width, out"""
    x, weight, eps, width, out = arg(args, 1), arg(args, 2), bits_to_float(arg(args, 3)), arg(args, 4), arg(args, 5)
    start, stop = share(header(step, arg(args, 0)), thread, threads)
    for row in range(start, stop):
        at = 4 * width * row
        _scale_row(x + at, weight, inverse_rms(x + at, width, eps), width, out + at)


@kernel
def add_rms_norm(args: int, step: int, thread: int, threads: int) -> None:
    """row kind, x, weight, eps as bits, width, out, residual, total: total = x + residual; out = rms_norm(total)"""
    x, weight, eps, width, out = arg(args, 1), arg(args, 2), bits_to_float(arg(args, 3)), arg(args, 4), arg(args, 5)
    residual, total = arg(args, 6), arg(args, 7)
    start, stop = share(header(step, arg(args, 0)), thread, threads)
    for row in range(start, stop):
        at = 4 * width * row
        _add_row(x + at, residual + at, width, total + at)
        _scale_row(total + at, weight, inverse_rms(total + at, width, eps), width, out + at)
