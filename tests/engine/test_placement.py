"""Where a model runs: what was asked for is what it gets, or it is told."""

import pytest
import torch

from vllm_nb.config import EngineConfig
from vllm_nb.engine.placement import place
from vllm_nb.kernels import cpu


@pytest.fixture
def threads():
    """As they were, afterwards; the number of the CPU kernels by default."""
    before, of_torch = cpu.describe()["threads"], torch.get_num_threads()
    torch.set_num_threads(2)
    cpu.set_threads(None)
    yield cpu.describe()["threads"]
    torch.set_num_threads(of_torch)
    cpu.set_threads(before)


def test_threads_are_those_of_the_last_engine(threads, caplog, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    place(EngineConfig(device="cpu", threads=5))
    assert caplog.text == ""
    place(EngineConfig(device="cpu", threads=6))
    assert "6 threads take turns on 5 processors" in caplog.text
    place(EngineConfig(device="cpu", threads=5))
    assert cpu.describe()["threads"] == 5
    place(EngineConfig(device="cpu"))
    assert cpu.describe()["threads"] == threads


def test_plain_pytorch_takes_its_threads_too(threads):
    place(EngineConfig(device="cpu", backend="reference", threads=3))
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_a_type_that_only_slow_kernels_have_is_told(dtype, caplog):
    placement = place(EngineConfig(device="cpu", dtype=dtype))
    assert placement.dtype == getattr(torch, dtype)
    assert placement.kernels.__name__.endswith("reference")
    assert f"slow: the fast ones do not compute in {dtype}; take dtype auto, float32, bfloat16" in caplog.text
