"""/inspect/events and the step debugger over HTTP."""

import threading

import pytest

from vllm_nb.client.http import EngineClient
from vllm_nb.engine import events as ring
from vllm_nb.errors import EngineDeadError, RequestError
from vllm_nb.events import StepDone
from vllm_nb.inspection.view import EngineView
from vllm_nb.sampling import SamplingParams

KEY = "test-key"
SHORT = {"max_tokens": 5, "ignore_eos": True}


@pytest.fixture
def client(tiny):
    with EngineClient(tiny.url, KEY) as client:
        yield client
        client.resume()
        tiny.eventually_empty()


def until_finished(batches, view):
    for batch in batches:
        for event in batch.events:
            view.apply(event)
        if view.finished and not view.running:
            return


def test_a_stream_begins_with_a_snapshot_and_goes_on(client):
    batches = client.events()
    first = next(batches)
    view = EngineView.from_snapshot(first.snapshot, first.offset)
    client.chat("Hello", **SHORT)
    until_finished(batches, view)
    batches.close()
    assert view.books() == client.view().books()


def test_a_reader_resumes_where_it_was(client):
    view = client.view()
    client.chat("Hello", **SHORT)
    for batch in client.events(view.offset, follow=False):
        assert (batch.snapshot, batch.lost) == (None, 0)
        for event in batch.events:
            view.apply(event)
    assert view.books() == client.view().books()
    assert list(client.events(view.offset, follow=False)) == []


def test_what_the_ring_has_lost_is_said(client, tiny, monkeypatch):
    monkeypatch.setattr(ring, "CAPACITY", 16)
    before = client.view().offset
    client.chat("Hello", max_tokens=40, ignore_eos=True)
    client.chat("Hello", max_tokens=40, ignore_eos=True)
    (batch,) = client.events(before, follow=False)
    assert batch.snapshot is not None
    assert batch.lost == batch.offset - before > 16


def test_an_offset_of_another_engine_begins_anew(client):
    (batch,) = client.events(10**12, follow=False)
    assert batch.snapshot is not None
    assert batch.lost == 0
    with pytest.raises(RequestError):
        next(client.events(-1))


def test_nothing_is_kept_once_nobody_reads(client, tiny, monkeypatch):
    client.view()
    log = tiny.host.engine._loop._events
    assert log.enabled
    monkeypatch.setattr(ring, "LINGER", -1.0)
    client.chat("Hello", **SHORT)
    assert not log.enabled
    assert log.ring is None
    monkeypatch.undo()
    offset = client.view().offset
    (batch,) = client.events(offset - 1, follow=False)  # of before the pause: there is a hole
    assert batch.lost == 1


def test_logprobs_and_texts_come_along(client):
    view = client.view()
    client.chat("Hello", logprobs=2, **SHORT)
    (batch,) = client.events(view.offset, follow=False)
    for event in batch.events:
        view.apply(event)
    (number,) = [n for n in view.finished if n >= max(view.finished)]
    seq = view.sequences[number]
    assert len(seq.logprobs) == 5
    assert all(len(event.top_ids) == 2 and event.logprob <= 0 for event in seq.logprobs.values())
    assert set(seq.tokens) <= batch.texts.keys()


def test_a_paused_engine_answers_everything_but_tokens(client, tiny):
    client.pause()
    assert client.paused
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(client.chat("Hello", **SHORT))) for _ in range(3)]
    for thread in threads:
        thread.start()
    tiny.eventually(lambda state: state["waiting"] == 3)
    assert client.step() == 1
    view = client.view()
    assert len(view.running) == 2  # as many as may
    assert view.wait_reason(view.waiting[0]) == "rows"
    assert sum(view.last_step.num_tokens) > 2
    tiny.host.abort_all()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 3
    assert client.step(5) == 0  # nothing is left
    with pytest.raises(RequestError, match="count"):
        client.step(0)


def test_a_client_that_leaves_frees_its_blocks_while_paused(client, tiny):
    client.pause()
    with client.stream("Hello", **SHORT):
        client.step(2)
        assert client.view().num_used > 0
    tiny.eventually(lambda state: state["kv_blocks"]["used"] == 0)
    assert client.paused


def test_pausing_ends_a_long_series_of_steps(client):
    made = []
    with client.stream("Hello", max_tokens=2000, ignore_eos=True):
        client.pause()
        thread = threading.Thread(target=lambda: made.append(client.step(1_000_000)))
        thread.start()
        for batch in client.events():
            if any(isinstance(event, StepDone) for event in batch.events):
                break
        client.pause()
        thread.join(30)
        assert 0 < made[0] < 1_000_000


def test_in_process_it_is_the_same(tiny):
    engine = tiny.host.engine
    engine.pause()
    stream = engine.generate_stream(SamplingParams(max_tokens=3, ignore_eos=True), "Hello")
    assert engine.step(2) == 2
    assert len(engine.view().sequences) == 1
    with pytest.raises(ValueError, match="at least 1"):
        engine.step(0)
    engine.resume()
    assert len([token for item in stream for token in item.token_ids]) == 3
    tiny.eventually_empty()


def test_the_end_of_the_engine_ends_its_readers(tiny_model_path):
    from vllm_nb.api import Engine

    with Engine(tiny_model_path) as engine:
        timeline = engine.timeline()
        engine.pause()
        stepping = threading.Thread(target=lambda: engine.step(3))
        stepping.start()
        stepping.join(30)
    with pytest.raises(EngineDeadError):
        list(engine.events())
    timeline._follower._thread.join(30)
    assert isinstance(timeline.error, EngineDeadError)
    assert timeline.ended
