"""Matrix products with packed weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vllm_nb.kernels.backend import Backend
from vllm_nb.kernels.quant import RawTensor, dequantize


class Linear:
    """x [T, K] -> [T, N]. Several parts become one product: q, k and v, or gate and up, side by side.

    parts: matrices [N_i, K]; biases: one vector [N_i] a part, or none at all.
    """

    def __init__(
        self,
        kernels: Backend,
        parts: Sequence[RawTensor],
        biases: Sequence[RawTensor] = (),
        *,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self._kernels = kernels
        self._weight = kernels.pack(parts, dtype=dtype, device=device)
        self._bias = torch.cat([dequantize(bias) for bias in biases]).to(device, dtype) if biases else None
        self.nbytes: int = self._weight.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernels.linear(x, self._weight, self._bias)
