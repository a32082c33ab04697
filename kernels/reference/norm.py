"""RMSNorm (Zhang and Sennrich 2019)."""

import torch
from torch import Tensor

from vllm_nb.kernels.reference.precision import widen


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., K] over the root of its mean square, times weight [K]; the weight is the whole factor (no added 1)."""
    wide = widen(x)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * weight).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Both [T, K]. Returns (rms_norm(x + residual), x + residual)."""
    total = x + residual
    return rms_norm(total, weight, eps), total
