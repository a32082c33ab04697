"""The gated feed-forward block."""

from torch import Tensor

from vllm_nb.errors import ModelLoadError
from vllm_nb.kernels.backend import Backend
from vllm_nb.layers.linear import Linear


class MLP:
    """x [T, K] -> [T, K]: down(activation(gate(x)) * up(x)), with gate and up in one product.

    activation: "silu" or "gelu_tanh". Raises ModelLoadError for any other.
    """

    def __init__(self, kernels: Backend, gate_up: Linear, down: Linear, activation: str):
        activations = {"silu": kernels.silu_mul, "gelu_tanh": kernels.gelu_tanh_mul}
        if activation not in activations:
            raise ModelLoadError(
                f"The model's activation function {activation!r} is not supported; "
                f"supported are {', '.join(activations)}."
            )
        self._gate_up = gate_up
        self._activation = activations[activation]
        self._down = down

    def __call__(self, x: Tensor) -> Tensor:
        return self._down(self._activation(self._gate_up(x)))
