"""Element-wise functions. Grid: as many programs as there are blocks of 1024 outputs. Bytes: each number once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def gated_kernel(out, gate_up, SIZE: tl.constexpr, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """out [T, SIZE] = activation(gate) * up, where gate_up [T, 2 SIZE] is gate beside up. Grid (T, SIZE / BLOCK)."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < SIZE
    gate = tl.load(gate_up + row * 2 * SIZE + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * SIZE + SIZE + i, mask=inside, other=0.0).to(tl.float32)
    if GELU:  # its tanh approximation
        active = 0.5 * gate * (1 + _tanh(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)))
    else:
        active = gate * tl.sigmoid(gate)
    tl.store(out + row * SIZE + i, (active * up).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def softcap_kernel(out, x, cap, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + i, mask=i < count, other=0.0).to(tl.float32)
    tl.store(out + i, (cap * _tanh(values / cap)).to(out.dtype.element_ty), mask=i < count)


def silu_mul(gate_up: Tensor) -> Tensor:
    """SwiGLU: silu(gate) * up, where gate_up [T, 2I] is gate [T, I] beside up [T, I]."""
    return _gated(gate_up, gelu=False)


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """GeGLU: gelu(gate) * up, with the tanh approximation of GELU; gate_up as in `silu_mul`."""
    return _gated(gate_up, gelu=True)


def _gated(gate_up: Tensor, *, gelu: bool) -> Tensor:
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
    gated_kernel[(rows, triton.cdiv(size, BLOCK))](out, gate_up, SIZE=size, GELU=gelu, BLOCK=BLOCK)
    return out


def softcap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap): keeps values within (-cap, cap) (Gemma 2)."""
    out = torch.empty_like(x)
    softcap_kernel[(triton.cdiv(x.numel(), BLOCK),)](out, x, cap, x.numel(), BLOCK=BLOCK)
    return out
