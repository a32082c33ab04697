"""RMSNorm, alone and fused with the residual addition before it."""

import torch
from torch import Tensor

from vllm_nb.kernels.backend import Backend
from vllm_nb.kernels.quant import RawTensor, dequantize


class RMSNorm:
    """x [T, K] -> [T, K]. weight [K] is the whole factor: a checkpoint that stores it less one has it added already."""

    def __init__(self, kernels: Backend, weight: RawTensor, eps: float, *, dtype: torch.dtype, device: torch.device):
        self._kernels = kernels
        # Never below float32: the vector is small, and the backends compute the norm in float32 anyway.
        self.weight = dequantize(weight).to(device, torch.promote_types(dtype, torch.float32), copy=True)
        self.eps = eps
        self.nbytes = self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernels.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """(norm of the sum, the sum); no residual counts as zero."""
        if residual is None:
            return self(x), x
        return self._kernels.add_rms_norm(x, residual, self.weight, self.eps)
