"""Weights as they lie on the GPU: dense, or GGUF's blocks as planes of bits with scales (see kernels.planes)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm_nb.kernels.planes import GGUF_PLANES, PlaneFormat, take_apart
from vllm_nb.kernels.quant import QuantTensor, RawTensor, dequantize

_SLAB_ROWS = 4096  # taken apart at a time: bounds the copies beside the packed weight


@dataclass(frozen=True)
class Planes:
    """Rows of one GGUF format. low uint8 [N, K * bits / 8], high the same or None; scales float16 [N, K / group],
    minima the same or None."""

    format: PlaneFormat
    low: Tensor
    high: Tensor | None
    scales: Tensor
    minima: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        return self.low.shape[0], self.low.shape[1] * 8 // self.format.low

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.low, self.high, self.scales, self.minima) if t is not None)


@dataclass(frozen=True)
class Scaled:
    """int8 or float8_e4m3fn values [N, K] with one float32 scale a row [N]."""

    values: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes


Segment = Tensor | Planes | Scaled


@dataclass(frozen=True)
class Weight:
    """A matrix [N, K] as segments of rows, each of one format. dtype: what floating-point weights are held in."""

    segments: tuple[Segment, ...]
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        return sum(s.shape[0] for s in self.segments), self.segments[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(s.nbytes for s in self.segments)


def pack(parts: Sequence[RawTensor], *, dtype: torch.dtype, device: torch.device) -> Weight:
    """Stack matrices [N_i, K] along their rows. Quantised parts keep their precision, floating-point ones are held in
    `dtype`; neighbours of one format become one segment, so that they are one product."""
    segments: list[Segment] = []
    for part in parts:
        segment = _pack_part(part, dtype, device)
        joined = _join(segments[-1], segment) if segments else None
        if joined is None:
            segments.append(segment)
        else:
            segments[-1] = joined
    return Weight(tuple(segments), dtype)


def quantize_rows(values: Tensor, dtype: torch.dtype) -> Scaled:
    """values [N, K] as int8 or float8_e4m3fn with a scale a row, the largest value of a row at the type's largest."""
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    wide = values.float()
    scales = wide.abs().amax(1).clamp(min=1e-12) / largest
    stored = wide / scales.unsqueeze(1)
    return Scaled((stored.round() if dtype == torch.int8 else stored).to(dtype), scales)


def _pack_part(part: RawTensor, dtype: torch.dtype, device: torch.device) -> Segment:
    if isinstance(part, QuantTensor) and part.type in GGUF_PLANES:
        return _pack_planes(part, device)
    values = part if isinstance(part, Tensor) else dequantize(part)
    return values.to(device, dtype, copy=True).contiguous()


def _pack_planes(part: QuantTensor, device: torch.device) -> Planes:
    slabs = [_slab(part, start, device) for start in range(0, part.shape[0], _SLAB_ROWS)]
    low, high, scales, minima = (_cat(tensors) for tensors in zip(*slabs, strict=True))
    assert low is not None
    assert scales is not None
    return Planes(GGUF_PLANES[part.type], low, high, scales, minima)


def _slab(part: QuantTensor, start: int, device: torch.device) -> tuple[Tensor | None, ...]:
    """low, high, scales, minima of some rows, each [rows, ...]."""
    planes, scales, minima = take_apart(part.type, np.asarray(part.data[start : start + _SLAB_ROWS]))
    high = planes[1][1] if len(planes) > 1 else None
    arrays = (planes[0][1], high, scales, minima)
    return tuple(None if a is None else torch.from_numpy(a.reshape(len(a), -1).copy()).to(device) for a in arrays)


def _cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [t for t in tensors if t is not None]
    return torch.cat(present) if present else None


def _join(above: Segment, below: Segment) -> Segment | None:
    """Both in one, where they have the same format."""
    if isinstance(above, Tensor) and isinstance(below, Tensor):
        return torch.cat((above, below))
    if isinstance(above, Planes) and isinstance(below, Planes) and above.format == below.format:
        return Planes(
            above.format,
            torch.cat((above.low, below.low)),
            _cat((above.high, below.high)),
            torch.cat((above.scales, below.scales)),
            _cat((above.minima, below.minima)),
        )
    return None
