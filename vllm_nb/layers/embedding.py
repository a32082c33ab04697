"""The two ends of a decoder: token ids to vectors, and vectors to logits."""

from typing import Any

import torch
from torch import Tensor

from vllm_nb.kernels.backend import Backend, Weight


class Embedding:
    """token_ids [T] -> [T, K]: rows of a packed weight [V, K], times `scale`."""

    def __init__(self, kernels: Backend, weight: Weight, scale: float = 1.0):
        self._kernels = kernels
        self._weight = weight
        self._scale = scale

    def __call__(self, token_ids: Tensor) -> Tensor:
        return self._kernels.embedding(token_ids, self._weight, self._scale)


class LogitsHead:
    """x [T, K] at rows indices [R] -> logits [R, V], float32 or wider, capped (Gemma 2) where `softcap` is set.

    A tied model passes the packed weight of its embedding.
    """

    def __init__(self, kernels: Backend, weight: Any, softcap: float | None = None):
        self._kernels = kernels
        self._weight = weight
        self._softcap = softcap

    def __call__(self, x: Tensor, indices: Tensor) -> Tensor:
        logits = self._kernels.linear(self._kernels.gather_rows(x, indices), self._weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # the tensor itself in a float32 model
        return logits if self._softcap is None else self._kernels.softcap(logits, self._softcap)
