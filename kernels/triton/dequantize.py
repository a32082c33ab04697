"""How a tile of weights is read, whatever it is stored as: the one function behind GEMV, GEMM and embedding.

A tile of planes is read byte by byte as it lies, one field of the bytes after the other (see kernels.planes): a byte of
4-bit numbers holds two weights 16 inputs apart, so field 0 of a block of 32 gives its inputs 0 to 15 and field 1 the
others. The sum over inputs does not mind the order, and no byte is read twice.
"""

import triton
import triton.language as tl


@triton.jit
def input_index(start, field, WIDTH: tl.constexpr, LOW: tl.constexpr):
    """Inputs [WIDTH] that `field` of the WIDTH bytes from byte `start` on belongs to. LOW 0: not planes, input =
    byte."""
    j = start + tl.arange(0, WIDTH)
    if LOW:
        BYTES: tl.constexpr = 4 * LOW  # of a block of 32 inputs
        j = j // BYTES * 32 + field * BYTES + j % BYTES
    return j


@triton.jit
def weight_tile(
    low,  # planes [N, K * LOW / 8], or values [N, K] of any type
    high,
    scales,  # float16 [N, K / GROUP]
    minima,
    codebook,  # float32 [16]
    n,  # rows [BLOCK_N]
    start,  # first byte (or value) in a row
    field,
    N,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_MIN: tl.constexpr,
    ZERO: tl.constexpr,
    CODEBOOK: tl.constexpr,
):
    """float32 [BLOCK_N, WIDTH]; 0 outside of the matrix."""
    j = start + tl.arange(0, WIDTH)
    row = n.to(tl.int64)[:, None]
    ROW: tl.constexpr = K * LOW // 8 if LOW else K
    inside = (n < N)[:, None] & (j < ROW)[None, :]
    stored = tl.load(low + row * ROW + j[None, :], mask=inside, other=0.0 if LOW == 0 else 0)
    if LOW == 0:
        value = stored.to(tl.float32)
    else:
        k = input_index(start, field, WIDTH, LOW)[None, :]
        number = (stored.to(tl.int32) >> (LOW * field)) & ((1 << LOW) - 1)
        if HIGH:
            i = k % 32
            BYTES: tl.constexpr = 4 * HIGH  # of a block of 32 inputs
            at = row * (K * HIGH // 8) + k // 32 * BYTES + i % BYTES
            bits = tl.load(high + at, mask=inside, other=0).to(tl.int32)
            number += ((bits >> (i // BYTES * HIGH)) & ((1 << HIGH) - 1)) << LOW
        group = row * (K // GROUP) + k // GROUP
        scale = tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)
        if CODEBOOK:
            value = scale * tl.load(codebook + number)
        else:
            value = scale * (number - ZERO).to(tl.float32)
        if HAS_MIN:
            value += tl.load(minima + group, mask=inside, other=0.0).to(tl.float32)
    return value
