"""Copies to and from a device. Without a GPU: where the pieces of one copy lie, and what they look like."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_nb.engine.transfer import Download, aligned_starts, upload


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=9), itemsize=st.sampled_from([1, 4, 8]))
def test_pieces_of_a_copy_begin_where_triton_takes_them_for_aligned(sizes, itemsize):
    starts, total = aligned_starts(sizes, itemsize)
    assert all(start * itemsize % 16 == 0 for start in starts)
    for start, size, end in zip(starts, sizes, [*starts[1:], total], strict=True):
        assert start + size <= end < start + size + 16


def test_each_array_keeps_its_shape():
    arrays = [np.zeros((3, 5), np.int32), np.zeros(0, np.int32), np.zeros(7, np.int32)]
    moved = upload(arrays, torch.device("meta"))  # a device of its own, though it keeps nothing
    assert [(tensor.shape, tensor.dtype) for tensor in moved] == [(array.shape, torch.int32) for array in arrays]


def test_on_the_cpu_nothing_is_copied():
    array = np.arange(5)
    (there,) = upload([array], torch.device("cpu"))
    array[0] = 9
    assert there[0] == 9
    (back,) = Download([there]).wait()
    assert np.shares_memory(back, array)
