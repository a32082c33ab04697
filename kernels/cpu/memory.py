"""Large memory: weights and the KV cache, in huge pages where the system has them.

A decode step reads all of it. With pages of 4 KiB each of them is looked up, and no fetching ahead goes beyond one.
"""

import ctypes
import mmap
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vllm_nb.kernels.cpu.layout import CACHE_LINE

_HUGE = 1 << 21
_CHUNK = 16 * _HUGE  # small arrays share one, which lives as long as one of them
_POPULATE = 23  # MADV_POPULATE_WRITE, Linux 5.14: pages as after a write, and their content stays
_lock = threading.Lock()
_populating = ThreadPoolExecutor(1, "vllm-nb-memory")
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


def make_resident(memory: np.ndarray, places: Iterable[int]) -> None:
    """Get the pages with these bytes of `memory` ready on a thread of its own, so that who writes there first need not
    wait for them; nothing is changed. Where the system cannot do that, nothing is done."""
    if sys.platform == "linux":
        _populating.submit(_populate, memory, [memory.ctypes.data + place for place in places])


def _populate(memory: np.ndarray, addresses: list[int]) -> None:
    """memory: held, so that nobody else gets these addresses meanwhile."""
    madvise = ctypes.CDLL(None).madvise
    for address in addresses:
        page = address // mmap.PAGESIZE * mmap.PAGESIZE
        madvise(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), _POPULATE)


def _map(size: int) -> np.ndarray:
    """At least `size` bytes that begin with a huge page."""
    # private: shared memory, Python's default, has huge pages only where the administrator allows them
    memory = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    return array[-array.ctypes.data % _HUGE :][:size]
