"""Element-wise functions."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vllm_nb.kernels.reference.precision import widen


def silu_mul(gate_up: Tensor) -> Tensor:
    """SwiGLU: silu(gate) * up, where gate_up [T, 2I] is gate [T, I] beside up [T, I]."""
    gate, up = widen(gate_up).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """GeGLU: gelu(gate) * up, with the tanh approximation of GELU; gate_up as in `silu_mul`."""
    gate, up = widen(gate_up).chunk(2, dim=-1)
    return (F.gelu(gate, approximate="tanh") * up).to(gate_up.dtype)


def softcap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap): keeps values within (-cap, cap) (Gemma 2)."""
    return (torch.tanh(widen(x) / cap) * cap).to(x.dtype)
