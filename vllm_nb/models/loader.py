"""From a checkpoint's tensors to layers: by name, checked against the sizes the configuration promises."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from vllm_nb.errors import ModelLoadError
from vllm_nb.kernels.backend import Backend, Weight
from vllm_nb.kernels.quant import RawTensor, dequantize
from vllm_nb.layers.linear import Linear
from vllm_nb.layers.norm import RMSNorm
from vllm_nb.models.config import ModelConfig
from vllm_nb.weights.checkpoint import Checkpoint


@dataclass
class WeightLoader:
    """Reads each tensor once, tells `advance`, and remembers what was read and how many bytes it became."""

    checkpoint: Checkpoint
    kernels: Backend
    dtype: torch.dtype  # of activations and biases
    weight_dtype: torch.dtype  # of weights, where the backend does not keep them quantised
    device: torch.device
    max_len: int  # tokens of context the model will be asked for
    advance: Callable[[float], None]
    nbytes: int = 0
    _names: set[str] = field(init=False)
    _read: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._names = self.checkpoint.names()

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config

    def has(self, name: str) -> bool:
        return name in self._names

    def weight(self, name: str, rows: int, columns: int) -> Weight:
        """One packed matrix."""
        return self._pack([self._tensor(name, rows, columns)])

    def linear(self, names: Sequence[str], rows: Sequence[int], columns: int, *, bias: bool) -> Linear:
        """The product with the matrices `names`.weight [rows_i, columns] stacked, and their biases [rows_i]."""
        parts = [self._tensor(f"{name}.weight", n, columns) for name, n in zip(names, rows, strict=True)]
        weight = self._pack(parts)
        if not bias:
            return Linear(self.kernels, weight)
        biases = [dequantize(self._tensor(f"{name}.bias", n)) for name, n in zip(names, rows, strict=True)]
        stacked = torch.cat(biases).to(self.device, self.dtype)
        self.nbytes += stacked.nbytes
        return Linear(self.kernels, weight, stacked)

    def norm(self, name: str, size: int) -> RMSNorm:
        weight = self._tensor(f"{name}.weight", size)
        layer = RMSNorm(self.kernels, weight, self.config.rms_norm_eps, dtype=self.dtype, device=self.device)
        self.nbytes += layer.nbytes
        return layer

    def unread(self) -> list[str]:
        """Names of tensors nobody asked for."""
        return sorted(self._names - self._read)

    def _pack(self, parts: Sequence[RawTensor]) -> Weight:
        weight = self.kernels.pack(parts, dtype=self.weight_dtype, device=self.device)
        self.nbytes += weight.nbytes
        return weight

    def _tensor(self, name: str, *shape: int) -> RawTensor:
        if name not in self._names:
            raise ModelLoadError(
                f"Tensor {name} is missing in {self.checkpoint.path}: the file is incomplete, or not of the "
                f"architecture it names ({self.config.architecture})."
            )
        tensor = self.checkpoint.tensor(name)
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(
                f"Tensor {name} in {self.checkpoint.path} has the shape {list(tensor.shape)}, "
                f"where the model's configuration asks for {list(shape)}."
            )
        self._read.add(name)
        self.advance(1)
        return tensor
