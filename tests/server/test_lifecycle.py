"""A server over its engine's life: loading, ready, failed, idle, ended."""

import asyncio
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import httpx
import openai
import pytest
from safetensors.torch import load_file, save_file

from vllm_nb import progress
from vllm_nb.api import Engine
from vllm_nb.config import EngineConfig
from vllm_nb.errors import EngineDeadError, ModelLoadError
from vllm_nb.sampling import SamplingParams
from vllm_nb.server.host import EngineHost
from vllm_nb.server.watch import watch

HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
SMALL = EngineConfig(num_kv_blocks=512)


@pytest.fixture
def engine(tiny_model_path):
    with Engine(tiny_model_path, SMALL) as engine:
        yield engine


def test_while_it_loads_it_answers_with_the_progress(engine, serving):
    loaded = threading.Event()

    def load():
        with progress.task("Loading weights", total=100, unit="tensors") as advance:
            advance(42)
            assert loaded.wait(30)
        return engine

    with serving(EngineHost(load)) as live, live.client() as client:
        while (health := client.get("/health").json())["progress"] is None:
            assert health["status"] == "loading"
        assert client.get("/health").status_code == 503
        report = {"phase": "Loading weights", "done": 42.0, "total": 100, "unit": "tensors", "finished": False}
        assert health["progress"] == report
        assert (health["id"], health["model"], health["error"]) == ("test", None, None)
        refused = client.post("/v1/chat/completions", json=HELLO)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "model_loading"
        assert refused.json()["error"]["message"] == "the model is still loading (Loading weights, 42%)"
        loaded.set()
        while (health := client.get("/health").json())["status"] == "loading":
            time.sleep(0.01)
        assert (health["status"], health["model"], health["progress"]) == ("ready", "tiny-llama", None)
        assert client.post("/v1/chat/completions", json=HELLO).status_code == 200


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModelLoadError("x.gguf is cut off"), "x.gguf is cut off"),
        (MemoryError("no room"), "loading the model failed: MemoryError: no room"),
    ],
)
def test_a_failed_load_is_told_and_ends_the_server(serving, error, told):
    def load():
        raise error

    with serving(EngineHost(load)) as live:
        with live.client() as client:
            while (response := client.get("/health")).json()["status"] == "loading":
                time.sleep(0.001)
        assert response.status_code == 503
        assert (response.json()["status"], response.json()["error"]) == ("failed", told)
        live.thread.join(30)
        assert not live.thread.is_alive()
        assert live.host.failure == told


def test_it_ends_by_itself_when_idle_but_not_while_it_works(engine, serving, monkeypatch):
    monkeypatch.setattr("vllm_nb.server.watch.TICK", 0.01)
    host = EngineHost.ready(engine)
    host.idle_timeout = 0.05
    with serving(host) as live, live.client() as client:
        body = HELLO | {"max_tokens": 500, "ignore_eos": True, "n": 16}
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["usage"]["completion_tokens"] == 16 * 500
        assert answer["timings"]["total_s"] > host.idle_timeout
        live.thread.join(30)
        assert not live.thread.is_alive()
        assert host.failure is None


def test_looking_is_no_use_and_the_timeout_can_be_changed(engine, serving):
    host = EngineHost.ready(engine)
    host.idle_timeout = 60.0
    with serving(host) as live, live.client() as client:
        before = client.get("/health").json()
        live.state()
        after = client.get("/health").json()
        assert after["idle_s"] > before["idle_s"]
        assert after["idle_timeout_s"] == 60
        assert client.post("/inspect/idle_timeout", json={"seconds": None}).json() == {"seconds": None}
        assert client.get("/health").json()["idle_timeout_s"] is None
        assert client.post("/inspect/idle_timeout", json={"seconds": -1}).status_code == 400


def test_shutdown_ends_what_runs_with_an_abort(engine, serving):
    with serving(EngineHost.ready(engine)) as live, live.openai() as client:
        options = HELLO | {"max_tokens": 60_000}
        stream = client.chat.completions.create(
            model="tiny-llama", **options, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        with live.client() as other:
            assert other.post("/inspect/shutdown").json() == {"status": "stopping"}
        assert list(stream)[-1].choices[0].finish_reason == "abort"
        live.thread.join(30)
        assert not live.thread.is_alive()


def test_when_the_engine_fails_streams_say_so_and_health_turns_503(tiny_model_path, serving, caplog):
    engine = Engine(tiny_model_path, SMALL)
    with serving(EngineHost.ready(engine)) as live, live.client() as client:
        body = HELLO | {"max_tokens": 60_000, "ignore_eos": True, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            break_engine(engine)
            events = [line.removeprefix("data: ") for line in lines if line]
        assert events[-1] == "[DONE]"
        error = json.loads(events[-2])["error"]
        assert error["code"] == "engine_dead"
        assert "ZeroDivisionError" in error["message"]
        refused = client.post("/v1/chat/completions", json=HELLO)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
        health = client.get("/health")
        assert health.status_code == 503
        assert health.json()["status"] == "failed"
        assert "ZeroDivisionError" in health.json()["error"]
        live.thread.join(30)
        assert not live.thread.is_alive()
    assert "the engine thread has failed" in caplog.text
    engine.close()


def break_engine(engine: Engine) -> None:
    """Make the next step fail inside, as a bug would."""

    def broken_step():
        return 1 / 0

    def break_it(core):
        core.step = broken_step

    engine._loop.call(break_it)


def test_one_failing_request_fails_alone(tiny_model_path, serving, tmp_path):
    """Where logits are NaN the answer is an error, whole or streamed; the neighbours get theirs."""
    shutil.copytree(tiny_model_path, tmp_path / "poisoned")
    poison(tmp_path / "poisoned" / "model.safetensors", token=0)  # "!" in the byte alphabet
    bad = HELLO | {"messages": [{"role": "user", "content": "Hello!"}]}
    with Engine(tmp_path / "poisoned", SMALL) as engine, serving(EngineHost.ready(engine)) as live:
        assert engine.tokenizer.encode("!") == [0]
        greedy = {"temperature": 0, "ignore_eos": True, "logit_bias": {"0": -100}, "return_token_ids": True}
        with live.client() as client:
            alone = client.post("/v1/chat/completions", json=HELLO | greedy | {"max_tokens": 100}).json()
            neighbour = HELLO | greedy | {"max_tokens": 8000, "stream": True}
            with client.stream("POST", "/v1/chat/completions", json=neighbour) as stream:
                events = token_ids(stream.iter_lines())
                beside = [next(events)]
                response = client.post("/v1/chat/completions", json=bad)
                assert response.status_code == 500
                assert response.json()["error"]["code"] == "generation_failed"
                assert "NaN logits" in response.json()["error"]["message"]
                beside += islice(events, 99)
            assert beside == alone["choices"][0]["token_ids"]
        with live.openai() as client:
            stream = client.chat.completions.create(model="poisoned", **bad, stream=True)
            with pytest.raises(openai.APIError, match="NaN logits"):
                list(stream)
        live.eventually_empty()


def token_ids(lines: Iterable[str]) -> Iterator[int]:
    """The ids in the events of a stream."""
    for line in lines:
        if line.startswith("data: {"):
            yield from json.loads(line.removeprefix("data: "))["choices"][0].get("token_ids", ())


def poison(path: Path, token: int) -> None:
    """Make the embedding of a token NaN."""
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][token] = float("nan")
    save_file(tensors, path)


@pytest.mark.parametrize("breaks", [False, True], ids=["stopped", "failed"])
@pytest.mark.parametrize("in_a_loop", [False, True], ids=["script", "notebook"])
def test_serve_returns_after_shutdown_and_raises_a_failure(tiny_model_path, breaks, in_a_loop):
    """Also where a loop runs already, as in a notebook's main thread."""
    port = free_port()

    async def serve_in_a_loop():
        engine.start_server(port, api_key="k")

    def ask():
        transport = httpx.HTTPTransport(retries=50)
        headers = {"Authorization": "Bearer k"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, transport=transport) as client:
            assert client.get("/health").json()["status"] == "ready"
            if breaks:
                break_engine(engine)
                assert client.post("/v1/chat/completions", json=HELLO).status_code == 503
                assert client.get("/health").status_code == 503
            else:
                client.post("/inspect/shutdown")

    with Engine(tiny_model_path, SMALL) as engine, ThreadPoolExecutor() as pool:
        asked = pool.submit(ask)
        with pytest.raises(EngineDeadError, match="ZeroDivisionError") if breaks else nullcontext():
            if in_a_loop:
                asyncio.run(serve_in_a_loop())
            else:
                engine.start_server(port, api_key="k")
        asked.result()


def test_an_open_address_without_a_key_is_refused(engine):
    with pytest.raises(ValueError, match=r"host '0\.0\.0\.0' can be reached from other machines"):
        engine.start_server(0, host="0.0.0.0")


def test_answers_that_outlast_the_drain_are_ended_in_order(engine, monkeypatch):
    monkeypatch.setattr("vllm_nb.server.watch.DRAIN", 0.2)
    host = EngineHost.ready(engine)

    async def main():
        params = SamplingParams(max_tokens=60_000, ignore_eos=True)
        stream = await engine.agenerate_stream(params, "Hello")
        with host.using(stream.request_id, [stream]):
            watching = asyncio.create_task(watch(host, stop=print, stopping=lambda: True, on_tick=print))
            items = [item async for item in stream]
            await watching
        return items

    items = asyncio.run(main())
    assert items[-1].finish_reason == "abort"
    assert len(items) > 1


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
