"""The client against a real engine process: answers, interrupts that reach the engine, errors that say what to do."""

import asyncio
import gc
import signal
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_nb.client.answers import EventSplitter
from vllm_nb.client.http import EngineClient
from vllm_nb.client.process import start
from vllm_nb.errors import EngineDeadError, QueueFullError, RequestError, VllmNbError
from vllm_nb.messages import ChatMessage, TextPart

LONG = {"max_tokens": 5000, "ignore_eos": True}


@pytest.fixture
def client(engine):
    with EngineClient(engine.info.url, engine.client.token, name="tiny-llama") as client:
        yield client
        eventually(client, lambda state: state["running"] == state["waiting"] == state["kv_blocks"]["used"] == 0)


def eventually(client, condition) -> dict:
    deadline = time.monotonic() + 30
    while not condition(state := client.state()):
        assert time.monotonic() < deadline, state
        time.sleep(0.01)
    return state


def test_a_stream_outside_of_with_says_how_it_is_used(client):
    with pytest.raises(RequestError, match=r"a stream is used in a `with` block, .*with client\.stream"):
        next(client.stream("Hi"))

    async def outside():
        async for _ in client.aio.stream("Hi"):
            pytest.fail("nothing was sent")

    with pytest.raises(RequestError, match=r"async with client\.aio\.stream"):
        asyncio.run(outside())


def test_a_client_that_nobody_closes_closes_its_connections(engine):
    client = EngineClient(engine.info.url, engine.client.token)
    client.state()
    http = client._http
    del client
    gc.collect()
    assert http.is_closed


def test_an_answer(client):
    completion = client.chat("Hello", max_tokens=8, temperature=0, ignore_eos=True, logprobs=2)
    assert (completion.finish_reason, completion.model) == ("length", "tiny-llama")
    assert len(completion.token_ids) == completion.usage.completion_tokens == 8
    assert [entry.token_id for entry in completion.logprobs] == completion.token_ids
    for entry in completion.logprobs:
        assert (entry.rank, entry.top[0].token_id) == (1, entry.token_id)
        assert [other.rank for other in entry.top] == [1, 2]
    timings = completion.timings
    assert 0 <= timings.queued_s <= timings.ttft_s <= timings.total_s
    assert "8 tokens · " in completion.summary


def test_a_stream_brings_the_same_in_pieces(client):
    options = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, "n": 2}
    whole = client.chat("Hello", **options)
    with client.stream("Hello", **options) as stream:
        assert stream.request_id.startswith("req-")
        items = list(stream)
    assert stream.completion.choices == whole.choices
    for choice in whole.choices:
        assert "".join(item.text for item in items if item.index == choice.index) == choice.text
    assert [item.finish_reason for item in items if item.finish_reason] == ["length"] * 2


@pytest.mark.parametrize(
    "messages",
    [
        "Hello",
        ChatMessage("user", "Hello"),
        {"role": "user", "content": "Hello"},
        [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        [ChatMessage("user", (TextPart("Hel"), "lo"))],
    ],
)
def test_ways_to_say_the_same(client, messages):
    again = client.chat(messages, temperature=0, max_tokens=4)
    assert again.token_ids == client.chat("Hello", temperature=0, max_tokens=4).token_ids


def test_a_text_is_continued_as_it_is(client):
    with client.stream_text("abc", temperature=0, max_tokens=4, ignore_eos=True, logprobs=1) as stream:
        items = list(stream)
    assert stream.completion.usage.prompt_tokens == 3
    assert [entry.token_id for item in items for entry in item.logprobs or ()] == stream.completion.token_ids


def test_half_a_character_is_refused(client):
    with pytest.raises(RequestError, match="holds a lone surrogate, half a character"):
        client.chat("a\ud83d")
    assert client.chat("Hello", max_tokens=2).text is not None


@pytest.mark.parametrize("seconds", [-5, float("inf"), float("nan")])
def test_an_idle_timeout_has_to_be_a_time(seconds):
    with pytest.raises(ValueError, match="idle_timeout must be a positive number of seconds, or None for never"):
        start("smollm2", idle_timeout=seconds)


def test_prompt_logprobs(client):
    entries = client.chat("Hello", max_tokens=1, prompt_logprobs=1).prompt_logprobs
    assert entries[0] is None
    assert all(entry.logprob <= 0 for entry in entries[1:])
    assert len(entries) == client.chat("Hello", max_tokens=1).usage.prompt_tokens


def interrupt_main_thread() -> None:
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def interrupt_when(client, condition) -> None:
    """Interrupts the main thread once the engine's state meets the condition."""

    def wait() -> None:
        try:
            eventually(client, condition)
        finally:  # also where it does not come: or the test would wait for ever
            interrupt_main_thread()

    threading.Thread(target=wait).start()


def test_an_interrupt_while_it_waits_for_a_token_ends_the_request_in_the_engine(client):
    """The engine stands still, so nothing comes, and the interrupt meets a read that blocks. Also beside polars, whose
    handler of SIGINT would have the system go on with the read."""
    import polars  # noqa: F401

    with client.stream("Hello", **LONG, n=4) as busy:
        next(busy)
        eventually(client, lambda state: state["running"] == 4)
        client.pause()
        try:
            stream = client.stream("Hello", **LONG)
            with pytest.raises(KeyboardInterrupt), stream:  # noqa: PT012  # the state decides where
                interrupt_when(client, lambda state: state["waiting"] == 1)
                for _ in stream:
                    continue
            assert stream.completion.finish_reason == "abort"
            assert eventually(client, lambda state: state["waiting"] == 0)["running"] == 4
        finally:
            client.resume()


def test_an_interrupt_in_mid_answer_keeps_the_text_so_far(client):
    stream = client.stream("Hello", **LONG)
    with pytest.raises(KeyboardInterrupt), stream:  # noqa: PT012
        for number, _ in enumerate(stream):
            if number == 5:
                interrupt_main_thread()
    completion = stream.completion
    assert completion.finish_reason == "abort"
    assert 5 <= len(completion.token_ids) < LONG["max_tokens"]
    assert completion.summary.endswith("interrupted")
    eventually(client, lambda state: state["running"] == 0)


def test_an_interrupt_of_chat_ends_the_request_too(client):
    interrupt_when(client, lambda state: state["running"] == 1)
    with pytest.raises(KeyboardInterrupt):
        client.chat("Hello", **LONG)
    eventually(client, lambda state: state["running"] == 0)


def test_leaving_early_and_aborting_end_the_request(client):
    with client.stream("Hello", **LONG) as stream:
        next(stream)
    assert stream.completion.finish_reason == "abort"
    with client.stream("Hello", **LONG) as stream:
        next(stream)
        stream.abort()
        assert list(stream) == []
    eventually(client, lambda state: state["running"] == 0)
    assert client.abort("req-unknown") is False


def test_an_abort_from_elsewhere_ends_the_stream_in_order(client):
    with client.stream("Hello", **LONG) as stream:
        next(stream)
        assert client.abort(stream.request_id) is True
        for _ in stream:
            continue
    assert stream.completion.finish_reason == "abort"
    assert stream.completion.usage.completion_tokens == len(stream.completion.token_ids)


def test_the_connection_is_kept(client):
    client.chat("Hello", max_tokens=2)
    (kept,) = client._http._transport._pool.connections
    client.chat("Hello", max_tokens=2)
    with client.stream("Hello", max_tokens=3) as stream:
        list(stream)
    client.state()
    assert client._http._transport._pool.connections == [kept]


def test_mistakes_are_refused_before_anything_is_sent(client):
    with pytest.raises(TypeError, match="unknown parameter 'temprature'; did you mean 'temperature'"):
        client.chat("Hello", temprature=1)
    with pytest.raises(ValueError, match="temperature must be a number from 0 to 100, not -1"):
        client.chat("Hello", temperature=-1)
    with pytest.raises(RequestError, match="unknown role 'wizard'"):
        client.chat([{"role": "wizard", "content": "x"}])
    with pytest.raises(RequestError, match="messages is empty"):
        client.chat([])


def test_what_the_engine_refuses(client):
    with pytest.raises(RequestError, match=r"the prompt has .* tokens and this engine takes at most"):
        client.chat("x" * 70_000)
    with pytest.raises(RequestError, match="model 'other' is not served here"):
        client.chat("Hello", model="other")
    assert client.chat("Hello", max_tokens=1, model="tiny-llama").text is not None


def test_a_wrong_token(engine):
    client = EngineClient(engine.info.url, "wrong")
    with client, pytest.raises(VllmNbError, match="refuses the token: a valid API key is needed"):
        client.chat("Hello")


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = EngineClient(f"http://127.0.0.1:{port}", "t")
    for call in (lambda c: c.chat("x"), lambda c: c.health(), lambda c: c.state()):
        with client, pytest.raises(EngineDeadError, match=rf"127\.0\.0\.1:{port} is not running any more.*%vllm start"):
            call(client)


@pytest.mark.parametrize(
    ("status", "details", "kind"),
    [
        (503, {"message": "m", "code": "queue_full"}, QueueFullError),
        (503, {"message": "m", "code": "model_loading"}, QueueFullError),
        (429, {"message": "m"}, QueueFullError),
        (503, {"message": "m", "code": "engine_dead"}, EngineDeadError),
        (400, {"message": "m"}, RequestError),
        (404, "m", RequestError),
        (500, {"message": "m"}, VllmNbError),
    ],
)
def test_which_exception_an_answer_becomes(status, details, kind):
    error = EngineClient("http://x", name="e").error(status, details, retry_after=7)
    assert type(error) is not VllmNbError
    assert isinstance(error, kind)
    assert "m" in str(error)
    if isinstance(error, QueueFullError):
        assert error.retry_after == 7


BODIES = st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=2), max_size=6)


@given(bodies=BODIES, ensure_ascii=st.booleans(), newline=st.sampled_from(["\n", "\r\n"]), data=st.data())
def test_events_come_out_whole_however_they_are_cut(bodies, ensure_ascii, newline, data):
    import json

    lines = [f"data: {json.dumps(body, ensure_ascii=ensure_ascii)}{newline}{newline}" for body in bodies]
    wire = "".join([": a comment\n\n", *lines, "data: [DONE]\n\n"]).encode("utf-8", "surrogatepass")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    splitter = EventSplitter()
    assert [body for piece in pieces for body in splitter.feed(piece)] == bodies


def test_a_long_event_takes_time_in_proportion():
    """Image data, or log-probabilities of a long prompt: 13 MB were seconds in the notebook's kernel."""
    size, piece = 2**23, 2**10
    wire = b'data: {"text": "' + b"x" * size + b'"}\n\n'
    splitter = EventSplitter()
    began = time.process_time()
    (body,) = [body for at in range(0, len(wire), piece) for body in splitter.feed(wire[at : at + piece])]
    assert len(body["text"]) == size
    assert time.process_time() - began < 2  # a tenth of a second; many where each piece copies all before it
