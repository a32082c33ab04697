"""The garbage collector stands still while a model is loaded, and then goes on as before."""

import gc
import weakref

import pytest

from vllm_nb.api import Engine
from vllm_nb.engine.collector import collector_paused


class Node:
    """Garbage that only the collector finds."""

    def __init__(self):
        self.itself = self


@pytest.fixture(autouse=True)
def collector_on():
    gc.enable()
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_within_and_everything_after():
    with collector_paused():
        assert not gc.isenabled()
        garbage = weakref.ref(Node())
        old = [Node() for _ in range(10_000)]
        assert garbage() is not None
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    young = {id(each) for each in gc.get_objects(generation=0)}
    assert not young & {id(each) for each in old}  # the next short collection does not walk through them
    gc.collect()
    assert garbage() is None


def test_it_goes_on_after_an_error():
    with pytest.raises(ZeroDivisionError), collector_paused():
        1 / 0  # noqa: B018
    assert gc.isenabled()


def test_one_that_is_off_stays_off():
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


def test_what_somebody_has_frozen_stays_frozen():
    gc.freeze()
    frozen = gc.get_freeze_count()
    with collector_paused():
        pass
    assert gc.get_freeze_count() > frozen // 2 > 0  # not all: other threads' references to some may end
    assert gc.isenabled()


def test_an_engine_is_loaded_without_it(tiny_model_path, monkeypatch):
    seen = []
    monkeypatch.setattr("vllm_nb.api.build_core", lambda *_: seen.append(gc.isenabled()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Engine(tiny_model_path)
    assert seen == [False]
    assert gc.isenabled()
