"""RMSNorm (Zhang and Sennrich 2019), alone and with the residual addition before it.

Grid (T,): a program owns a row, reads it once and keeps it in registers. Bytes: a read and a write of [T, K], with the
addition two of each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rms_norm_kernel(
    out,  # [T, K]
    x,  # [T, K]
    residual,  # with ADD: [T, K]; becomes x + residual
    total,  # with ADD: [T, K], the sum
    weight,  # float32 [K]
    eps,
    ADD: tl.constexpr,
    K: tl.constexpr,
    K_PAD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * K
    k = tl.arange(0, K_PAD)
    inside = k < K
    values = tl.load(x + row + k, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        values += tl.load(residual + row + k, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + row + k, rounded, mask=inside)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / K + eps)
    normed = values * scale * tl.load(weight + k, mask=inside, other=0.0)
    tl.store(out + row + k, normed.to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., K] over the root of its mean square, times weight [K]; float32 inside."""
    out = torch.empty_like(x)
    _launch(out, x, x, x, weight, eps, add=False)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Both [T, K]. Returns (rms_norm(x + residual), x + residual)."""
    out, total = torch.empty_like(x), torch.empty_like(x)
    _launch(out, x, residual, total, weight, eps, add=True)
    return out, total


def _launch(out: Tensor, x: Tensor, residual: Tensor, total: Tensor, weight: Tensor, eps: float, *, add: bool) -> None:
    size = x.shape[-1]
    padded = triton.next_power_of_2(size)
    warps = min(16, max(1, padded // 512))
    rms_norm_kernel[(x.numel() // size,)](
        out, x, residual, total, weight, eps, ADD=add, K=size, K_PAD=padded, num_warps=warps
    )
