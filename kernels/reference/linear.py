"""Weights and the products with them. A packed weight is a plain tensor [N, K] of the model's type."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vllm_nb.kernels.quant import QuantTensor, RawTensor, dequantize

# Rows dequantised at a time: bounds the float32 copy beside the packed weight to some megabytes.
SLAB_ROWS = 4096


def pack(parts: Sequence[RawTensor], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Stack matrices [N_i, K] along their rows, dequantised to `dtype`: [sum of N_i, K], in memory of its own."""
    rows = sum(part.shape[0] for part in parts)
    weight = torch.empty(rows, parts[0].shape[1], dtype=dtype, device=device)
    start = 0
    for part in parts:
        for first in range(0, part.shape[0], SLAB_ROWS):
            slab = _rows(part, first, min(first + SLAB_ROWS, part.shape[0]))
            weight[start : start + slab.shape[0]].copy_(slab)
            start += slab.shape[0]
    return weight


def _rows(part: RawTensor, first: int, last: int) -> Tensor:
    if isinstance(part, Tensor):
        return part[first:last]
    return dequantize(QuantTensor(part.type, (last - first, part.shape[1]), part.data[first:last]))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N]: [T, N]."""
    return F.linear(x, weight, bias)


def embedding(token_ids: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """Rows of weight [V, K] for token_ids [T], times `scale`: [T, K]."""
    rows = F.embedding(token_ids, weight)
    return rows if scale == 1.0 else rows * scale


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    """x [T, K] at indices [R]: [R, K]."""
    return x.index_select(0, indices)
