"""Quantised weights as planes of bits, scales and minima: what backends pack GGUF's blocks into, and the taking apart.

A plane of p bits has, for each 32 inputs, 4 * p bytes: input i lies in byte i % (4 * p), from bit p * (i // (4 * p))
up. With q the unsigned number put together from the planes (low bits first), the weight is scale * (q - zero), plus the
minimum if there is one, or scale * CODEBOOK[q] for IQ4_NL.

The blocks are described in ggml-common.h of the ggml project. NumPy only; about as fast as memory allows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

BLOCK = 32  # inputs that share one activation scale, and a plane's unit

# IQ4_NL's values. Source: ggml-common.h, kvalues_iq4nl.
CODEBOOK = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class PlaneFormat:
    """Bits in the low and the high plane (0: there is none), inputs that share a scale, whether there are minima, what
    is subtracted from q, and whether q is looked up in CODEBOOK instead."""

    name: str
    low: int
    high: int
    group: int
    has_min: bool
    zero: int
    codebook: bool = False


Q2 = PlaneFormat("q2", 2, 0, 16, True, 0)
Q3 = PlaneFormat("q3", 2, 1, 16, False, 4)
Q4 = PlaneFormat("q4", 4, 0, 32, False, 8)
Q4_MIN = PlaneFormat("q4_min", 4, 0, 32, True, 0)
Q4_CODEBOOK = PlaneFormat("q4_codebook", 4, 0, 32, False, 0, codebook=True)
Q5 = PlaneFormat("q5", 4, 1, 32, False, 16)
Q5_MIN = PlaneFormat("q5_min", 4, 1, 32, True, 0)
Q6 = PlaneFormat("q6", 4, 2, 16, False, 32)
Q8 = PlaneFormat("q8", 8, 0, 32, False, 128)

# GGUF type -> format
GGUF_PLANES = {
    "Q2_K": Q2,
    "Q3_K": Q3,
    "Q4_0": Q4,
    "Q4_1": Q4_MIN,
    "Q4_K": Q4_MIN,
    "IQ4_NL": Q4_CODEBOOK,
    "Q5_0": Q5,
    "Q5_1": Q5_MIN,
    "Q5_K": Q5_MIN,
    "Q6_K": Q6,
    "Q8_0": Q8,
}

Parts = tuple[list[tuple[int, Array]], Array, Array | None]  # planes (bits, bytes), scales, minima


def _merge(values: Array, bits: int) -> Array:
    """Numbers below 2**bits, uint8 [rows, blocks, 32] -> a plane's bytes [rows, blocks, 4 * bits]."""
    rows, blocks, _ = values.shape
    fields = values.reshape(rows, blocks, 8 // bits, bits * 4)
    merged = fields[:, :, 0].copy()
    for n in range(1, 8 // bits):
        merged |= fields[:, :, n] << np.uint8(n * bits)
    return merged


def _f16(raw: Array) -> Array:
    """The bytes [..., 2 * n] as float16 [..., n]."""
    return np.ascontiguousarray(raw).view(np.float16)


def _blocks(raw: Array, size: int) -> Array:
    """Rows of bytes -> [rows, blocks, size]"""
    return raw.reshape(raw.shape[0], -1, size)


def _high_bits(raw: Array) -> Array:
    """Q5_0's and Q5_1's 32 high bits, uint8 [rows, blocks, 4] -> a one-bit plane of 4 bytes."""
    return _merge(np.unpackbits(np.ascontiguousarray(raw), axis=2, bitorder="little"), 1)


def _q4_0(raw: Array) -> Parts:
    # the file's bytes already hold input j in the low and j + 16 in the high half, as the plane wants them
    blocks = _blocks(raw, 18)
    return [(4, blocks[:, :, 2:])], _f16(blocks[:, :, :2]), None


def _q4_1(raw: Array) -> Parts:
    blocks = _blocks(raw, 20)
    return [(4, blocks[:, :, 4:])], _f16(blocks[:, :, :2]), _f16(blocks[:, :, 2:4])


def _q5_0(raw: Array) -> Parts:
    blocks = _blocks(raw, 22)
    return [(4, blocks[:, :, 6:]), (1, _high_bits(blocks[:, :, 2:6]))], _f16(blocks[:, :, :2]), None


def _q5_1(raw: Array) -> Parts:
    blocks = _blocks(raw, 24)
    planes = [(4, blocks[:, :, 8:]), (1, _high_bits(blocks[:, :, 4:8]))]
    return planes, _f16(blocks[:, :, :2]), _f16(blocks[:, :, 2:4])


def _q8_0(raw: Array) -> Parts:
    blocks = _blocks(raw, 34)
    return [(8, np.ascontiguousarray(blocks[:, :, 2:]) ^ np.uint8(128))], _f16(blocks[:, :, :2]), None


def _six_bit_scales(raw: Array) -> tuple[Array, Array]:
    """The 12 bytes of Q4_K and Q5_K -> 8 scales and 8 minima, 0..63."""
    low, middle, mixed = raw[..., 0:4], raw[..., 4:8], raw[..., 8:12]
    scales = np.concatenate([low & 63, (mixed & 15) | ((low >> 6) << 4)], axis=-1)
    minima = np.concatenate([middle & 63, (mixed >> 4) | ((middle >> 6) << 4)], axis=-1)
    return scales, minima


def _spread(factor: Array, scales: Array, sign: float = 1.0) -> Array:
    """A super-block's factor float16 [rows, n, 1] times its small integers [rows, n, m] -> float16 [rows, n * m]"""
    product = factor.astype(np.float32) * (sign * scales.astype(np.float32))
    return product.astype(np.float16).reshape(len(scales), -1)


def _nibbles_k(raw: Array) -> Array:
    """Q4_K's and Q5_K's 128 bytes, 32 inputs in the low and the next 32 in the high halves -> [rows, blocks, 32]"""
    pieces = raw.reshape(raw.shape[0], -1, 4, 1, 32)
    return np.concatenate([pieces & 15, pieces >> 4], axis=3).reshape(raw.shape[0], -1, 32)


def _q4_k(raw: Array) -> Parts:
    blocks = _blocks(raw, 144)
    scales, minima = _six_bit_scales(blocks[:, :, 4:16])
    scale, minimum = _f16(blocks[:, :, 0:2]), _f16(blocks[:, :, 2:4])
    return [(4, _merge(_nibbles_k(blocks[:, :, 16:]), 4))], _spread(scale, scales), _spread(minimum, minima, -1.0)


def _q5_k(raw: Array) -> Parts:
    blocks = _blocks(raw, 176)
    scales, minima = _six_bit_scales(blocks[:, :, 4:16])
    # byte j of the 32 holds, in bit n, the high bit of input j of group n
    bits = np.unpackbits(
        np.ascontiguousarray(blocks[:, :, 16:48]).reshape(*blocks.shape[:2], 32, 1), axis=3, bitorder="little"
    )
    high = bits.transpose(0, 1, 3, 2).reshape(len(raw), -1, 32)
    planes = [(4, _merge(_nibbles_k(blocks[:, :, 48:]), 4)), (1, _merge(high, 1))]
    return planes, _spread(_f16(blocks[:, :, 0:2]), scales), _spread(_f16(blocks[:, :, 2:4]), minima, -1.0)


def _two_bits(raw: Array) -> Array:
    """Bytes [rows, n, 2, 32], which hold four 2-bit numbers each, 32 inputs apart -> [rows, n * 8, 32]"""
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 1, 4, 1)
    return ((raw[:, :, :, None, :] >> shifts) & 3).reshape(len(raw), -1, 32)


def _q6_k(raw: Array) -> Parts:
    blocks = _blocks(raw, 210)
    halves = blocks[:, :, :128].reshape(*blocks.shape[:2], 2, 1, 64)
    low = np.concatenate([halves & 15, halves >> 4], axis=3).reshape(len(raw), -1, 32)
    high = _two_bits(blocks[:, :, 128:192].reshape(*blocks.shape[:2], 2, 32))
    scales = np.ascontiguousarray(blocks[:, :, 192:208]).view(np.int8)
    return [(4, _merge(low, 4)), (2, _merge(high, 2))], _spread(_f16(blocks[:, :, 208:210]), scales), None


def _q2_k(raw: Array) -> Parts:
    blocks = _blocks(raw, 84)
    packed = blocks[:, :, :16]
    values = _two_bits(blocks[:, :, 16:80].reshape(*blocks.shape[:2], 2, 32))
    scale, minimum = _f16(blocks[:, :, 80:82]), _f16(blocks[:, :, 82:84])
    return [(2, _merge(values, 2))], _spread(scale, packed & 15), _spread(minimum, packed >> 4, -1.0)


def _q3_k(raw: Array) -> Parts:
    blocks = _blocks(raw, 110)
    bits = np.unpackbits(
        np.ascontiguousarray(blocks[:, :, :32]).reshape(*blocks.shape[:2], 32, 1), axis=3, bitorder="little"
    )
    high = bits.transpose(0, 1, 3, 2).reshape(len(raw), -1, 32)
    low = _two_bits(blocks[:, :, 32:96].reshape(*blocks.shape[:2], 2, 32))
    packed = blocks[:, :, 96:108]
    scales = np.concatenate([packed[..., :8] & 15, packed[..., :8] >> 4], axis=-1)
    tops = np.concatenate([(packed[..., 8:12] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-1)
    signed = (scales | (tops << 4)).astype(np.int8) - np.int8(32)
    return [(2, _merge(low, 2)), (1, _merge(high, 1))], _spread(_f16(blocks[:, :, 108:110]), signed), None


def take_apart(kind: str, raw: Array) -> Parts:
    """Rows of blocks of a GGUF type, uint8 [rows, bytes] -> planes [rows, blocks of 32, 4 * bits], scales and minima
    float16 [rows, groups]."""
    return _READERS[kind](raw)


_READERS: dict[str, Callable[[Array], Parts]] = {
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
    "IQ4_NL": _q4_0,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "Q8_0": _q8_0,
}
