"""Packing: weights as they lie in a file -> tiles (see `formats`). NumPy only; about as fast as memory allows.

GGUF's block structures, whose bytes are taken apart here, are described in ggml-common.h of the ggml project.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from vllm_nb.kernels.cpu.formats import BLOCK, FLOATS, GGUF_FORMATS, QUADS, TILE, VECTOR_BYTES, Format
from vllm_nb.kernels.quant import QuantTensor, RawTensor, dequantize

Array = np.ndarray

_CHUNK = 1 << 22  # weights packed at a time by one thread: the intermediate arrays stay in the cache
_DTYPES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}


@dataclass(frozen=True)
class Segment:
    """Rows of one type. kind: a packed format's name, or "bf16", "f16", "f32"; data: the tiles, 64-byte aligned uint8;
    format: None for floating-point weights."""

    kind: str
    rows: int
    columns: int
    format: Format | None
    data: torch.Tensor

    @property
    def tiles(self) -> int:
        return -(-self.rows // TILE)

    @property
    def blocks(self) -> int:
        """Blocks of 32 inputs in a tile, the last one filled up with zeros."""
        return -(-self.columns // BLOCK)


@dataclass(frozen=True)
class Weight:
    """A packed matrix, its segments one below the other: the backend's own, opaque to layers.

    shape: (outputs, inputs).
    """

    segments: tuple[Segment, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(s.rows for s in self.segments), self.segments[0].columns

    @property
    def nbytes(self) -> int:
        return sum(s.data.numel() for s in self.segments)


def pack(parts: Sequence[RawTensor], *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Weight:
    """Stack matrices [rows, inputs] along their rows and pack them. Quantised parts keep their precision;
    floating-point ones, and quantised types without a packed format, are held in `dtype`. No part is kept.

    ValueError when the parts differ in columns, or dtype is not bfloat16, float16 or float32.
    """
    if torch.device(device).type != "cpu":
        raise ValueError(f"kernels.cpu packs for the CPU, not for {device}")
    if dtype not in _DTYPES:
        raise ValueError(f"kernels.cpu holds weights in bfloat16, float16 or float32, not in {dtype}")
    columns = {part.shape[1] for part in parts}
    if len(columns) != 1:
        raise ValueError(f"parts stacked in one weight need as many columns, not {sorted(columns)}")
    return Weight(tuple(_pack_part(part, dtype) for part in parts))


def _pack_part(part: RawTensor, dtype: torch.dtype) -> Segment:
    if isinstance(part, QuantTensor) and part.type in GGUF_FORMATS:
        return _pack_quantised(part, GGUF_FORMATS[part.type])
    values = part if isinstance(part, torch.Tensor) else dequantize(part)
    return _pack_floats(values.detach(), dtype)


def _aligned_bytes(count: int) -> Array:
    """uint8 [count], 64-byte aligned, with room behind it for a vector read past the end."""
    memory = np.empty(count + 2 * VECTOR_BYTES, np.uint8)
    start = -memory.ctypes.data % VECTOR_BYTES
    return memory[start : start + count]


def _in_chunks(tiles: int, weights_per_tile: int, work: Callable[[int, int], None]) -> None:
    """work(first tile, last tile) over all tiles; NumPy's copies let two threads run at once."""
    step = max(1, _CHUNK // weights_per_tile)
    starts = range(0, tiles, step)
    if len(starts) == 1:
        work(0, tiles)
        return
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda start: work(start, min(tiles, start + step)), starts))


def _pack_floats(values: torch.Tensor, dtype: torch.dtype) -> Segment:
    kind = _DTYPES[dtype]
    rows, columns = values.shape
    tiles, padded = -(-rows // TILE), -(-columns // BLOCK) * BLOCK
    pair = 2 if kind == "bf16" else 1
    data = _aligned_bytes(tiles * TILE * padded * FLOATS[kind])
    unit = np.uint16 if FLOATS[kind] == 2 else np.uint32
    packed = data.view(unit).reshape(tiles, padded // pair, TILE, pair)

    def work(first: int, last: int) -> None:
        piece = (
            values[first * TILE : last * TILE]
            .to(dtype)
            .contiguous()
            .view(torch.int16 if pair == 2 or unit is np.uint16 else torch.int32)
        )
        full = np.zeros(((last - first) * TILE, padded), unit)
        full[: piece.shape[0], :columns] = piece.numpy().view(unit)
        packed[first:last] = full.reshape(last - first, TILE, padded // pair, pair).transpose(0, 2, 1, 3)

    _in_chunks(tiles, TILE * padded, work)
    return Segment(kind, rows, columns, None, torch.from_numpy(data))


def _pack_quantised(part: QuantTensor, fmt: Format) -> Segment:
    rows, columns = part.shape
    tiles, blocks = -(-rows // TILE), columns // BLOCK
    data = _aligned_bytes(tiles * blocks * fmt.block_bytes)
    packed = data.reshape(tiles, blocks, fmt.block_bytes)
    take_apart = _READERS[part.type]

    def work(first: int, last: int) -> None:
        raw = np.asarray(part.data[first * TILE : last * TILE])
        if len(raw) < (last - first) * TILE:  # the last tile of a matrix whose rows are no multiple of 16
            raw = np.concatenate([raw, np.zeros(((last - first) * TILE - len(raw), raw.shape[1]), np.uint8)])
        planes, scales, minima = take_apart(raw)
        out = packed[first:last]
        at = 0
        for bits, plane in planes:
            _store_plane(out[:, :, at : at + VECTOR_BYTES * bits], plane, bits)
            at += VECTOR_BYTES * bits
        for values in (scales, minima):
            if values is not None:
                at = _store_scales(out, at, values, fmt.groups)

    _in_chunks(tiles, TILE * columns, work)
    return Segment(fmt.name, rows, columns, fmt, torch.from_numpy(data))


def _store_plane(out: Array, plane: Array, bits: int) -> None:
    """plane [rows, blocks, 4 * bits] bytes, merged as the layout wants them -> out [tiles, blocks, 64 * bits]"""
    tiles, blocks = out.shape[:2]
    words = np.ascontiguousarray(plane).view(np.uint32).reshape(tiles, TILE, blocks, bits)
    target = out.view(np.uint32).reshape(tiles, blocks, bits, TILE)
    target[...] = words.transpose(0, 2, 3, 1)


def _store_scales(out: Array, at: int, values: Array, groups: int) -> int:
    """values float16 [rows, blocks * groups] -> their place in each block; returns where the next ones go."""
    tiles, blocks = out.shape[:2]
    size = 2 * TILE * groups
    shaped = values.view(np.uint16).reshape(tiles, TILE, blocks, groups).transpose(0, 2, 3, 1)
    out[:, :, at : at + size] = np.ascontiguousarray(shaped).view(np.uint8).reshape(tiles, blocks, size)
    return at + size


Parts = tuple[list[tuple[int, Array]], Array, Array | None]  # planes (bits, bytes), scales, minima


def _merge(values: Array, bits: int) -> Array:
    """Numbers below 2**bits, uint8 [rows, blocks, 32] -> a plane's bytes [rows, blocks, 4 * bits].

    Quad v + n * bits goes to bits n * bits and up of the bytes 4 * v .. 4 * v + 3.
    """
    rows, blocks, _ = values.shape
    fields = values.reshape(rows, blocks, QUADS // bits, bits * 4)
    merged = fields[:, :, 0].copy()
    for n in range(1, QUADS // bits):
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
