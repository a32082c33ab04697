"""How CUDA graphs are captured beside other engines of the process, with stand-ins for what only a GPU has."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from vllm_nb.engine.graphs import CudaCapture


@pytest.fixture
def captures(monkeypatch):
    """The arguments of each capture, and how many there were at a time."""
    seen = SimpleNamespace(arguments=[], under_way=0, most=0)

    @contextmanager
    def graph(of, **arguments):
        seen.arguments.append(arguments)
        seen.under_way += 1
        seen.most = max(seen.most, seen.under_way)
        yield
        seen.under_way -= 1

    @contextmanager
    def stream(_):
        yield

    a_stream = SimpleNamespace(wait_stream=lambda other: None)
    stand_ins = {
        "graph": graph,
        "stream": stream,
        "graph_pool_handle": object,
        "Stream": lambda device: a_stream,
        "current_stream": lambda: a_stream,
        "CUDAGraph": lambda: SimpleNamespace(replay=None),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return seen


def test_engines_of_one_process_capture_one_after_the_other_and_beside_what_others_do(captures):
    """The second engine has all the time it could need to get in between."""
    begun = threading.Event()

    def first():
        if captures.under_way:  # and not the run beforehand
            begun.set()
            second.join(0.2)

    def at_once():
        assert begun.wait(10)
        CudaCapture(torch.device("cpu"))(lambda: None)

    second = threading.Thread(target=at_once)
    second.start()
    CudaCapture(torch.device("cpu"))(first)
    second.join()
    assert len(captures.arguments) == 2
    assert captures.most == 1
    assert {arguments["capture_error_mode"] for arguments in captures.arguments} == {"thread_local"}
