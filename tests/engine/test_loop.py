"""The engine thread: whoever waits for it is told, however it ends; who alone may queue how much."""

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from vllm_nb import Prompt
from vllm_nb.api import Engine
from vllm_nb.config import EngineConfig
from vllm_nb.errors import EngineDeadError, QueueFullError
from vllm_nb.sampling import SamplingParams

SHORT = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=500, temperature=0, ignore_eos=True)


@contextmanager
def engine_of(path, **settings):
    with Engine(path, EngineConfig(backend="reference", num_kv_blocks=64, **settings)) as engine:
        yield engine


@contextmanager
def held(engine):
    """While the `with` lasts, the engine thread does nothing, and commands queue up."""
    standing, let_go = threading.Event(), threading.Event()

    def stand(_):
        standing.set()
        assert let_go.wait(60)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(engine._loop.call, stand)
        assert standing.wait(60)
        try:
            yield
        finally:
            let_go.set()


def outcome(function, *args):
    try:
        return function(*args)
    except EngineDeadError as error:
        return str(error)


def broken(*_):
    raise RuntimeError("books do not add up")


def until_queued(engine, count):
    while engine._loop._commands.qsize() < count:
        assert engine._loop._thread.is_alive()
        time.sleep(0.001)


@pytest.mark.timeout(60)
def test_all_who_queued_before_a_failure_are_told(tiny_model_path, monkeypatch):
    """The first of them makes it fail."""
    with engine_of(tiny_model_path) as engine, ThreadPoolExecutor(8) as pool:
        monkeypatch.setattr(engine._loop._core.scheduler, "add", broken)
        with held(engine):
            asked = [pool.submit(outcome, engine.generate, SHORT, "Hi") for _ in range(3)]
            until_queued(engine, 3)
            asked += [pool.submit(outcome, engine._loop.snapshot), pool.submit(outcome, engine.step, 2)]
            until_queued(engine, 5)
        assert all("books do not add up" in each.result(30) for each in asked)
        with pytest.raises(EngineDeadError, match="books do not add up"):
            engine.generate(SHORT, "Hi")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", ["schedule", "finish"])
def test_all_who_run_when_it_fails_are_told(tiny_model_path, monkeypatch, place):
    with engine_of(tiny_model_path) as engine, ThreadPoolExecutor(8) as pool:
        streams = [engine.generate_stream(LONG, "Hi") for _ in range(3)]
        asked = [pool.submit(outcome, list, stream) for stream in streams]
        monkeypatch.setattr(engine._loop._core.scheduler, place, broken)
        if place == "finish":
            streams[0].cancel()
        assert all("books do not add up" in each.result(30) for each in asked)


@pytest.mark.timeout(60)
def test_a_failure_while_it_ends_is_told_too(tiny_model_path, monkeypatch):
    with engine_of(tiny_model_path) as engine:
        stream = engine.generate_stream(LONG, "Hi")
        next(stream)
        core = weakref.ref(engine._loop._core)
        monkeypatch.setattr(engine._loop._core.scheduler, "finish", broken)
        engine.close()
        with pytest.raises(EngineDeadError, match="books do not add up"):
            list(stream)
        monkeypatch.undo()
        gc.collect()
        assert core() is None, "weights and cache outlive the engine"


def test_a_subscriber_that_fails_is_told_no_more_and_requests_go_on(tiny_model_path, caplog):
    with engine_of(tiny_model_path) as engine:
        seen = []

        def fails(event):
            seen.append(event)
            raise ValueError("what a listener does wrong")

        engine.subscribe(fails)
        others = []
        engine.subscribe(others.append)
        assert engine.generate(SHORT, "Hi").choices[0].finish_reason == "length"
    assert len(seen) == 1
    assert len(others) > 1
    assert "a subscriber of events has failed" in caplog.text
    assert "what a listener does wrong" in caplog.text


def test_who_finds_nobody_waiting_is_taken_however_much_it_asks(tiny_model_path):
    with engine_of(tiny_model_path, max_queued_requests=4, max_queued_tokens=20) as engine:
        output = engine.generate(SamplingParams(max_tokens=3, n=8, ignore_eos=True), Prompt(text="a" * 60))
        assert len(output.choices) == 8
        with held(engine):
            waits = engine.generate_stream(SHORT, "first")
            with pytest.raises(QueueFullError, match="1 requests are waiting, the limit is 4; try again later"):
                engine.generate_stream(SamplingParams(max_tokens=3, n=8), "then")
        assert list(waits)[-1].finish_reason == "length"


def test_prompts_that_come_together_do_not_stand_in_their_own_way(tiny_model_path):
    async def ask(engine):
        streams = await engine.agenerate_streams(SHORT, [Prompt(text=f"prompt {i}") for i in range(9)])
        return [[item async for item in stream][-1].finish_reason for stream in streams]

    with engine_of(tiny_model_path, max_queued_requests=4, max_queued_tokens=20) as engine:
        assert asyncio.run(ask(engine)) == ["length"] * 9


def test_a_list_does_not_fail_on_its_own_queue(tiny_model_path):
    """Its prompts wait for each other, where they are more than may wait at once."""
    with engine_of(tiny_model_path, max_queued_tokens=20, max_num_seqs=1) as engine:
        outputs = engine.generate(SHORT, [Prompt(text="abcdefgh " * 2 + str(i)) for i in range(10)])
        assert [output.error for output in outputs] == [None] * 10
