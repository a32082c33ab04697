"""Rows by number: token embeddings out of a packed weight, and the rows whose logits are wanted."""

from vllm_nb.kernels.cpu.formats import BLOCK, QUADS, TILE, VECTOR_BYTES
from vllm_nb.kernels.cpu.native.kernel import arg, header, helper, kernel, share
from vllm_nb.kernels.cpu.native.simd import (
    bits_to_float,
    load,
    load_f16,
    load_f32,
    load_i8,
    load_i32,
    load_part,
    store,
    store_f32,
    store_part,
)


@helper
def _field(plane: int, bits: int, quad: int, byte: int) -> int:
    """The number that a plane of `bits` bits holds for byte 4 * row + j of a quad."""
    value = load_i8(plane + VECTOR_BYTES * (quad % bits) + byte) & 255
    return (value >> (bits * (quad // bits))) & ((1 << bits) - 1)


@kernel
def embed_quantised(args: int, step: int, thread: int, threads: int) -> None:
    """row kind, ids, weights, width, out, scale as bits, then the format: low, high, groups, minima offset or 0, zero,
    codebook or 0, block bytes, scales offset"""
    rows, width = header(step, arg(args, 0)), arg(args, 3)
    scale = bits_to_float(arg(args, 5))
    low, high, groups, minima_at, zero, codebook = (
        arg(args, 6), arg(args, 7), arg(args, 8), arg(args, 9), arg(args, 10), arg(args, 11)
    )  # fmt: skip
    block_bytes, scales_at = arg(args, 12), arg(args, 13)
    blocks = width // BLOCK
    start, stop = share(rows * blocks, thread, threads)
    for item in range(start, stop):
        row, number = item // blocks, item % blocks
        token = load_i32(arg(args, 1) + 4 * row)
        lane = token % TILE
        block = arg(args, 2) + (token // TILE * blocks + number) * block_bytes
        out = arg(args, 4) + 4 * (width * row + BLOCK * number)
        for quad in range(QUADS):
            at = 2 * (TILE * (quad * groups // QUADS) + lane)
            factor = load_f16(block + scales_at + at)
            least = load_f16(block + minima_at + at) if minima_at != 0 else 0.0
            for j in range(4):
                q = _field(block, low, quad, 4 * lane + j)
                if high != 0:
                    q |= _field(block + VECTOR_BYTES * low, high, quad, 4 * lane + j) << low
                q = load_i8(codebook + q) if codebook != 0 else q - zero
                store_f32(out + 16 * quad + 4 * j, (factor * q + least) * scale)


@kernel
def embed_floats(args: int, step: int, thread: int, threads: int) -> None:
    """row kind, ids, weights, width, out, scale as bits, kind (0 f32, 1 f16, 2 bf16)"""
    rows, width, kind = header(step, arg(args, 0)), arg(args, 3), arg(args, 6)
    scale = bits_to_float(arg(args, 5))
    pair = 2 if kind == 2 else 1
    size = 4 if kind == 0 else 2
    padded = (width + BLOCK - 1) // BLOCK * BLOCK
    start, stop = share(rows, thread, threads)
    for row in range(start, stop):
        token = load_i32(arg(args, 1) + 4 * row)
        tile = arg(args, 2) + token // TILE * TILE * padded * size
        out = arg(args, 4) + 4 * width * row
        for i in range(width):
            at = tile + size * (i // pair * TILE * pair + token % TILE * pair + i % pair)
            if kind == 0:
                value = load_f32(at)
            elif kind == 1:
                value = load_f16(at)
            else:
                value = bits_to_float((load_i8(at + 1) << 24) | ((load_i8(at) & 255) << 16))
            store_f32(out + 4 * i, value * scale)


@kernel
def gather_rows(args: int, step: int, thread: int, threads: int) -> None:
    """row kind of the result, x, indices, width, out"""
    x, indices, width, out = arg(args, 1), arg(args, 2), arg(args, 3), arg(args, 4)
    start, stop = share(header(step, arg(args, 0)), thread, threads)
    for row in range(start, stop):
        source, target = x + 4 * width * load_i32(indices + 4 * row), out + 4 * width * row
        for i in range(0, width, 16):
            if i + 16 <= width:
                store(target + 4 * i, load(source + 4 * i))
            else:
                store_part(target + 4 * i, load_part(source + 4 * i, width - i, 0.0), width - i)
