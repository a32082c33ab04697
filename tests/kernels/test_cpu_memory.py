"""Memory that is got ready ahead of its first use."""

import ctypes
import mmap
import sys

import numpy as np
import pytest
import torch

from vllm_nb.kernels import cpu
from vllm_nb.kernels.cpu import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can get memory ready ahead")

HUGE = 1 << 21


def is_resident(address: int) -> bool:
    """What the system says of the page with this address."""
    answer = ctypes.c_ubyte()
    page = ctypes.c_void_p(address // mmap.PAGESIZE * mmap.PAGESIZE)
    assert ctypes.CDLL(None).mincore(page, ctypes.c_size_t(mmap.PAGESIZE), ctypes.byref(answer)) == 0
    return bool(answer.value & 1)


def wait() -> None:
    """Until all that was asked for is done."""
    memory._populating.submit(lambda: None).result()


def test_pages_get_resident_and_keep_what_is_in_them():
    array = memory.large_empty(16 * HUGE)  # so large that it has memory of its own
    start = array.ctypes.data
    array[8 * HUGE + 7] = 42
    places = [0, 8 * HUGE + 7, 12 * HUGE + 5, len(array) - 1]
    assert [is_resident(start + place) for place in places] == [False, True, False, False]
    memory.make_resident(array, places)
    wait()
    assert all(is_resident(start + place) for place in places)
    assert not is_resident(start + 4 * HUGE)
    assert array[8 * HUGE + 7] == 42
    assert np.count_nonzero(array) == 1


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32])
def test_the_first_block_of_each_head_of_a_kv_cache_is_resident(dtype):
    heads = 3
    cache = cpu.allocate_kv(4096, 16, heads, 128, dtype, torch.device("cpu"))
    wait()
    for part in (cache.keys, cache.values):
        head_bytes = part.nbytes // heads
        assert all(is_resident(part.data_ptr() + head * head_bytes) for head in range(heads))
        assert not is_resident(part.data_ptr() + head_bytes // 2)
