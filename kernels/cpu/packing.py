"""Packing: weights as they lie in a file -> tiles (see `formats`). NumPy only; about as fast as memory allows."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from vllm_nb.kernels.cpu.formats import BLOCK, FLOATS, GGUF_FORMATS, TILE, VECTOR_BYTES, Format
from vllm_nb.kernels.cpu.memory import large_empty
from vllm_nb.kernels.planes import take_apart
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
    data = large_empty(tiles * TILE * padded * FLOATS[kind])
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
    data = large_empty(tiles * blocks * fmt.block_bytes)
    packed = data.reshape(tiles, blocks, fmt.block_bytes)

    def work(first: int, last: int) -> None:
        raw = np.asarray(part.data[first * TILE : last * TILE])
        if len(raw) < (last - first) * TILE:  # the last tile of a matrix whose rows are no multiple of 16
            raw = np.concatenate([raw, np.zeros(((last - first) * TILE - len(raw), raw.shape[1]), np.uint8)])
        planes, scales, minima = take_apart(part.type, raw)
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
