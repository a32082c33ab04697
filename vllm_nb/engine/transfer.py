"""Copies between host and device that nobody waits for: through page-locked memory, in the order of the stream.

PyTorch keeps that memory until the copy is done, so it may be dropped at once; an ordinary array would make the host
wait for all that the device has to do before.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_ALIGNED = 16  # bytes; Triton compiles a kernel anew for an address that is no multiple of it


def page_locked(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Host memory [size], not written yet, that copies to and from `device` need not wait for."""
    return torch.empty(size, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")


def upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays of one type on `device`, in one copy; on the CPU the arrays themselves."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    starts, total = aligned_starts([array.size for array in arrays], arrays[0].itemsize)
    host = page_locked(total, torch.from_numpy(arrays[0][:0]).dtype, device)
    filled = host.numpy()
    for start, array in zip(starts, arrays, strict=True):
        filled[start : start + array.size] = array.ravel()
    moved = host.to(device, non_blocking=device.type == "cuda")
    return [moved[at : at + a.size].view(a.shape) for at, a in zip(starts, arrays, strict=True)]


def aligned_starts(sizes: Sequence[int], itemsize: int) -> tuple[list[int], int]:
    """Where pieces of these sizes begin, one behind the other at multiples of 16 bytes, and the size of them all."""
    step, starts, total = _ALIGNED // itemsize, [], 0
    for size in sizes:
        starts.append(total)
        total += -(-size // step) * step
    return starts, total


class Download:
    """Tensors on their way to the host."""

    def __init__(self, tensors: Sequence[Tensor]):
        self._tensors = [_on_its_way(tensor) for tensor in tensors]
        self._arrived = None
        if tensors[0].is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> list[np.ndarray]:
        """All of them, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [tensor.numpy() for tensor in self._tensors]


def _on_its_way(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.cpu()
    host = page_locked(tensor.numel(), tensor.dtype, tensor.device).view(tensor.shape)
    return host.copy_(tensor, non_blocking=True)
