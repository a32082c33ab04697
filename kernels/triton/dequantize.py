"""How a tile of weights is read, whatever it is stored as: the one function behind GEMV, GEMM and embedding.

A tile of planes is read byte by byte as it lies, one field of the bytes after the other (see kernels.planes): a byte of
4-bit numbers holds two weights 16 inputs apart, so field 0 of a block of 32 gives its inputs 0 to 15 and field 1 the
others. The sum over inputs does not mind the order, and no byte is read twice.
"""

import triton
import triton.language as tl


@triton.jit
def input_index(j, field, LOW: tl.constexpr):
    """The inputs that `field` of the bytes j of a row belongs to. LOW 0: not planes, input = byte."""
    if LOW:
        BYTES: tl.constexpr = 4 * LOW  # of a block of 32 inputs
        j = j // BYTES * 32 + field * BYTES + j % BYTES
    return j


@triton.jit
def numbers(
    low,  # planes [N, K * LOW / 8], or values [N, K] of any type
    high,
    codebook,  # float32 [16]
    row,  # int64, of a shape that broadcasts with j's
    j,  # bytes (or values) of a row
    inside,
    field,
    K: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    ZERO: tl.constexpr,
    CODEBOOK: tl.constexpr,
):
    """float32: what is stored there, without its scale; 0 where not `inside`, if there is no scale."""
    ROW: tl.constexpr = K * LOW // 8 if LOW else K
    stored = tl.load(low + row * ROW + j, mask=inside, other=0.0 if LOW == 0 else 0)
    if LOW == 0:
        number = stored.to(tl.float32)
    else:
        bits = (stored.to(tl.int32) >> (LOW * field)) & ((1 << LOW) - 1)
        if HIGH:
            BYTES: tl.constexpr = 4 * HIGH  # of a block of 32 inputs
            k = input_index(j, field, LOW)
            more = tl.load(high + row * (K * HIGH // 8) + k // 32 * BYTES + k % BYTES, mask=inside, other=0)
            bits += ((more.to(tl.int32) >> (k % 32 // BYTES * HIGH)) & ((1 << HIGH) - 1)) << LOW
        number = tl.load(codebook + bits) if CODEBOOK else (bits - ZERO).to(tl.float32)
    return number


@triton.jit
def weight_tile(
    low,  # as for `numbers`
    high,
    scales,  # float16 [N, K / GROUP]
    minima,
    codebook,
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
    j = (start + tl.arange(0, WIDTH))[None, :]
    row = n.to(tl.int64)[:, None]
    inside = (n < N)[:, None] & (j < (K * LOW // 8 if LOW else K))
    value = numbers(low, high, codebook, row, j, inside, field, K, LOW, HIGH, ZERO, CODEBOOK)
    if LOW:
        group = row * (K // GROUP) + input_index(j, field, LOW) // GROUP
        value *= tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)
        if HAS_MIN:
            value += tl.load(minima + group, mask=inside, other=0.0).to(tl.float32)
    return value
