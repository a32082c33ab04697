"""The type sums run in."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """x as float32, or as it is when it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
