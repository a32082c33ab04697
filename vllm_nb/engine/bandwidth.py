"""How fast this machine reads memory: with the bytes that a decode step must read, the floor below its time."""

import time

import torch

_BYTES = 1 << 28  # more than caches hold
_REPEATS = 8


def read_rate(device: torch.device) -> float:
    """Bytes a second, the best of several sums over a large array. Takes a tenth of a second and 256 MiB meanwhile."""
    numbers = torch.ones(_BYTES // 4, device=device)
    return numbers.nbytes / min(_seconds(numbers) for _ in range(_REPEATS))


def _seconds(numbers: torch.Tensor) -> float:
    start = time.perf_counter()
    numbers.sum().item()  # waits for the device
    return time.perf_counter() - start
