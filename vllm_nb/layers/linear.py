"""Matrix products with packed weights."""

from torch import Tensor

from vllm_nb.kernels.backend import Backend, Weight


class Linear:
    """x [T, K] -> [T, N] by a packed weight [N, K] and a bias [N]."""

    def __init__(self, kernels: Backend, weight: Weight, bias: Tensor | None = None):
        self._kernels = kernels
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernels.linear(x, self._weight, self._bias)
