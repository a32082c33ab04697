"""Large memory: weights and the KV cache, in huge pages where the system has them.

A decode step reads all of it. With pages of 4 KiB each of them is looked up, and no fetching ahead goes beyond one.
"""

import mmap
import threading

import numpy as np

from vllm_nb.kernels.cpu.layout import CACHE_LINE

_HUGE = 1 << 21
_CHUNK = 16 * _HUGE  # small arrays share one, which lives as long as one of them
_lock = threading.Lock()
_chunk = np.empty(0, np.uint8)  # what is left of the newest


def large_empty(count: int) -> np.ndarray:
    """uint8 [count], aligned to a cache line, with two lines of room behind it for a vector read past the end.

    Memory that was never written is not resident.
    """
    global _chunk
    size = (count + 2 * CACHE_LINE + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
    with _lock:
        if size > len(_chunk):
            if size >= _CHUNK // 4:  # one of its own
                return _map(size)[:count]
            _chunk = _map(_CHUNK)
        memory, _chunk = _chunk[:count], _chunk[size:]
        return memory


def _map(size: int) -> np.ndarray:
    """At least `size` bytes that begin with a huge page."""
    # private: shared memory, Python's default, has huge pages only where the administrator allows them
    memory = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    return array[-array.ctypes.data % _HUGE :][:size]
