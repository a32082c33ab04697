"""`vllm-nb bench serve` measures what happens: against a server whose every pause is known, and against a real one."""

import asyncio
import itertools
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vllm_nb.bench.load import Workload, run_load
from vllm_nb.bench.serve import summary
from vllm_nb.bench.sse import Client
from vllm_nb.cli import main
from vllm_nb.errors import VllmNbError

FIRST, BETWEEN = 0.06, 0.02  # seconds
WORKLOAD = Workload("scripted", (5, 9), (5, 5))


def chunk(ids: list[int], **more: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": "x", "token_ids": ids}], **more}).encode() + b"\n\n"


class Scripted:
    """Speaks just enough HTTP: five tokens with known pauses, or what `faults` says instead, request by request."""

    def __init__(self, faults: list[str]):
        self.faults = faults
        self.running = self.most = 0
        self.bodies: list[dict] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.split("content-length: ")[1].split("\r\n")[0])
                self.bodies.append(json.loads(await reader.readexactly(length)))
                self.running += 1
                self.most = max(self.most, self.running)
                await self.answer(writer, self.faults.pop(0) if self.faults else "")
                self.running -= 1
        except asyncio.IncompleteReadError:
            writer.close()

    async def answer(self, writer: asyncio.StreamWriter, fault: str) -> None:
        if fault == "refuse":
            writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nfull")
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await asyncio.sleep(FIRST)
        for i in range(5):
            self.send(writer, chunk([i]))
            await asyncio.sleep(BETWEEN)
        if fault == "error":
            self.send(writer, b'data: {"error": {"message": "engine died"}}\n\n')
        usage = {"prompt_tokens": 7, "completion_tokens": 6 if fault == "lose" else 5}
        half = chunk([], usage=usage)
        self.send(writer, half[:9])  # an event may come in pieces
        self.send(writer, half[9:])
        if fault != "break":
            self.send(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    def send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


@contextmanager
def scripted(*faults: str) -> Iterator[tuple[Scripted, str]]:
    server, loop, started = Scripted([*faults]), asyncio.new_event_loop(), threading.Event()
    listening = loop.run_until_complete(asyncio.start_server(server.serve, "127.0.0.1", 0))
    loop.call_soon(started.set)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    started.wait()
    try:
        yield server, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def load(url: str, **options):
    async def go():
        client = Client(url)
        try:
            return await run_load(client, WORKLOAD, **options)
        finally:
            client.close()

    return asyncio.run(go())


def test_times_are_those_of_the_server():
    with scripted() as (server, url):
        outcomes, seconds = load(url, concurrency=2, requests=8)
    row = summary(outcomes, seconds, {"ttft": 1000.0, "tpot": 1000 * BETWEEN / 2})
    assert (row["requests"], row["errors"], row["lost_tokens"]) == (8, 0, 0)
    assert (row["input_tokens"], row["output_tokens"]) == (8 * 7, 8 * 5)
    # A busy machine is late, never early.
    assert 1000 * FIRST <= row["ttft_p50"] < 1000 * FIRST + 60
    assert 1000 * BETWEEN - 3 <= row["itl_p50"] < 1000 * BETWEEN + 30
    assert row["tpot_p50"] == pytest.approx(row["itl_p50"], rel=0.5)
    assert row["e2e_p50"] >= 1000 * (FIRST + 4 * BETWEEN)
    assert row["goodput_per_second"] == 0
    assert summary(outcomes, seconds, {"e2e": 60_000.0})["goodput_per_second"] == row["requests_per_second"]
    assert server.most == 2
    body = server.bodies[0]
    assert (body["max_tokens"], body["stream"], body["model"]) == (5, True, "scripted")
    assert len({body["prompt"][:3] for body in server.bodies}) == 8  # no prefix to be reused


def test_whatever_goes_wrong_is_counted():
    with scripted("refuse", "error", "break", "lose") as (_, url):
        outcomes, seconds = load(url, concurrency=1, requests=5)
    assert [outcome.error for outcome in outcomes[3:]] == [None, None]
    assert outcomes[0].error == "HTTP 503: full"
    assert "engine died" in outcomes[1].error
    assert outcomes[2].error == "the answer broke off"
    row = summary(outcomes, seconds)
    assert (row["errors"], row["lost_tokens"]) == (3, 1)
    nobody = load("http://127.0.0.1:9", requests=1)[0][0]
    assert nobody.error.startswith("no answer from http://127.0.0.1:9")


def test_arrivals_have_the_rate_asked_for():
    with scripted() as (_, url):
        outcomes, _ = load(url, rate=150.0, concurrency=1000, requests=120)
    sent = sorted(outcome.sent for outcome in outcomes)
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent)]
    assert sum(gaps) / len(gaps) == pytest.approx(1 / 150, rel=0.35)
    spread = math.sqrt(sum((gap - 1 / 150) ** 2 for gap in gaps) / len(gaps))
    assert spread == pytest.approx(1 / 150, rel=0.5)  # exponential: as wide as its mean


def test_a_duration_ends_it():
    with scripted() as (_, url):
        outcomes, seconds = load(url, concurrency=4, duration=0.5)
    assert 0.5 <= seconds < 3
    assert all(outcome.error is None for outcome in outcomes)


def test_the_command_on_a_real_server(tiny, capsys):
    options = ["--requests", "12", "--concurrency", "3", "--output", "4", "30", "--api-key", "test-key", "--json"]
    for endpoint in ("completions", "chat"):
        rates = ["--rate", "200", "inf", "--endpoint", endpoint, "--slo", "ttft=60000", "e2e=60000"]
        assert main(["bench", "serve", "--url", tiny.url, *options, *rates]) == 0
        slow, fast = map(json.loads, capsys.readouterr().out.splitlines())
        assert (slow["rate"], fast["rate"]) == (200, "inf")
        for row in (slow, fast):
            assert (row["requests"], row["errors"], row["lost_tokens"]) == (12, 0, 0)
            assert 12 * 4 <= row["output_tokens"] <= 12 * 30
            assert 0 < row["ttft_p50"] <= row["e2e_p99"]
            assert row["goodput_per_second"] == row["requests_per_second"] > 0
        assert slow["output_tokens"] == fast["output_tokens"]  # the same lengths again
    assert main(["bench", "serve", "--url", tiny.url, *options[:-1], "--requests", "2"]) == 0
    assert "ttft p50" in capsys.readouterr().out
    tiny.eventually_empty()


def test_mistakes_of_the_command(tiny, capsys):
    assert main(["bench", "serve", "--url", tiny.url]) == 1
    assert "HTTP status 401" in capsys.readouterr().err
    assert main(["bench", "serve", "--url", "ftp://x"]) == 1
    assert "must be like http://127.0.0.1:8000, not 'ftp://x'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "serve", "--slo", "speed=1"])
    assert "an SLO is one of ttft, tpot, e2e" in capsys.readouterr().err
    for flag in ("--rate", "--duration", "--timeout"):
        with pytest.raises(SystemExit):
            main(["bench", "serve", flag, "0"])
        assert "a number above 0 is needed, not '0'" in capsys.readouterr().err
    with pytest.raises(VllmNbError, match="must be like"):
        Client("http://")


def test_64_clients_at_once_lose_nothing(smollm2):
    """For a minute: `vllm-nb bench serve --concurrency 64 --duration 60` beside `vllm-nb serve smollm2`."""
    workload = Workload("SmolLM2-135M-Instruct", (8, 24), (4, 20))

    async def go():
        client = Client(smollm2.url, "test-key")
        try:
            return await run_load(client, workload, concurrency=64, requests=96)
        finally:
            client.close()

    row = summary(*asyncio.run(go()))
    assert (row["requests"], row["errors"], row["lost_tokens"]) == (96, 0, 0)
    asked = sum(tokens for _, (_, tokens) in zip(range(96), workload.requests(), strict=False))
    assert row["output_tokens"] == asked
    smollm2.eventually_empty()


def test_the_overhead_is_of_the_same_requests(tiny_model_path, capsys):
    options = ["--requests", "8", "--rounds", "1", "--concurrency", "4", "--json"]
    assert main(["bench", "overhead", str(tiny_model_path), *options]) == 0
    alone, served = map(json.loads, capsys.readouterr().out.splitlines())
    assert (alone["what"], served["what"]) == ("engine alone", "over HTTP")
    assert alone["output_tokens"] == served["output_tokens"] >= 8 * 32
    assert (alone["cost_percent"], served["errors"], served["lost_tokens"]) == (0.0, 0, 0)
    ratio = served["output_tokens_per_second"] / alone["output_tokens_per_second"]
    assert served["cost_percent"] == pytest.approx(100 * (1 - ratio), abs=0.1)
