"""What a hostile or broken client sends or does not take: each is answered properly, and costs no more than itself."""

import json
import random
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

import httpx
import psutil
import pytest

from vllm_nb.server.host import EngineHost
from vllm_nb.server.protocol import LimitedProtocol
from vllm_nb.server.security import Policy

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
LONG = HELLO | {"max_tokens": 60_000, "ignore_eos": True}


def address(live) -> tuple[str, int]:
    host, port = live.url.removeprefix("http://").split(":")
    return host, int(port)


def exchange(live, data: bytes, seconds: float = 20) -> tuple[int, dict]:
    """Status and body of whatever answers these bytes."""
    with socket.create_connection(address(live), timeout=seconds) as connection:
        with suppress(OSError):  # refused before it was sent to its end
            connection.sendall(data)
        received = b""
        while piece := _receive(connection):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def _send_all(connection: socket.socket, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        connection.sendall(piece)


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


def head(live, length: int = 0, *more: str) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: {}:{}".format(*address(live)), "Authorization: Bearer test-key"]
    lines += ["Content-Type: application/json", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.fixture(autouse=True)
def still_serving(tiny):
    yield
    with tiny.client() as client:
        assert client.post(CHAT, json=HELLO).status_code == 200
    tiny.eventually_empty()


@pytest.mark.parametrize(
    ("make", "status", "code"),
    [
        (lambda live: b"\x16\x03\x01\x02\x00 this is TLS\r\n\r\n", 400, "invalid_http"),
        (lambda live: b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "invalid_http"),
        (lambda live: head(live, 0, *(f"X-Flood-{i}: {'x' * 90}" for i in range(1000))), 431, "head_too_large"),
        (lambda live: b"GET /" + b"a" * 200_000, 431, "head_too_large"),
        (lambda live: head(live, 100_000_000), 413, "body_too_large"),
    ],
    ids=["tls", "two hosts", "many headers", "long line", "100 MB announced"],
)
def test_what_is_no_request(tiny, make, status, code):
    got, body = exchange(tiny, make(tiny))
    assert (got, body["error"]["code"]) == (status, code)
    assert body["error"]["message"]


def test_a_100_mb_body_is_refused_while_it_comes_and_not_kept(tiny):
    process = psutil.Process()
    before = process.memory_info().rss
    pieces = (
        b"%x\r\n" % len(piece) + piece + b"\r\n" for piece in [b'{"messages": ["' + b"x" * 2**20] + [b"x" * 2**20] * 99
    )
    start = head(tiny, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with socket.create_connection(address(tiny), timeout=20) as connection:
        connection.sendall(start)
        with pytest.raises(OSError, match=r"(?i)reset|pipe"):  # hung up on before it was all sent
            _send_all(connection, pieces)
    assert process.memory_info().rss - before < 80 * 2**20


@pytest.fixture
def impatient(tiny, serving, monkeypatch):
    """A server whose patience is a fraction of a second."""
    monkeypatch.setattr(LimitedProtocol, "arrival", 0.2)
    monkeypatch.setattr(LimitedProtocol, "stalled", 0.2)
    with serving(EngineHost.ready(tiny.host.engine), Policy(token="test-key")) as live:
        yield live


@pytest.mark.parametrize(
    "make",
    [
        lambda live: b"GET /health HTT",
        lambda live: head(live, 100),
        lambda live: head(live, 100) + b'{"messages"',
    ],
    ids=["head", "no body", "half a body"],
)
def test_a_request_that_does_not_arrive_is_answered_408(impatient, make):
    status, body = exchange(impatient, make(impatient))
    assert (status, body["error"]["code"]) == (408, "request_timeout")
    assert body["error"]["message"] == "the request did not arrive within 0.2 seconds"


def test_a_connection_that_is_not_used_is_closed(impatient):
    with socket.create_connection(address(impatient), timeout=20) as connection:
        assert connection.recv(1) == b""


def test_a_request_may_take_long_once_it_has_arrived(impatient):
    with impatient.client() as client:
        answer = client.post(CHAT, json=HELLO | {"max_tokens": 3000, "ignore_eos": True})
        assert answer.json()["timings"]["total_s"] > 0.2
        assert client.get("/health").status_code == 200  # on the same connection


def test_a_reader_that_takes_nothing_counts_as_gone(impatient):
    body = json.dumps(LONG | {"stream": True, "logprobs": True, "top_logprobs": 20}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(address(impatient))
        connection.sendall(head(impatient, len(body)) + body)
        impatient.eventually(lambda state: state["running"] == 1)
        impatient.eventually_empty()  # though the connection is still open here


def test_100_clients_that_vanish_at_random_moments(tiny):
    """While queued, in the middle of a head, of a body, of an answer: all is given back, and memory stays."""
    rng = random.Random(5)
    process = psutil.Process()
    wave(tiny, rng, 30)  # what is allocated once
    tiny.eventually_empty()
    before = process.memory_info().rss
    wave(tiny, rng, 100)
    tiny.eventually_empty()
    assert process.memory_info().rss - before < 40 * 2**20


def wave(live, rng: random.Random, clients: int) -> None:
    threads = [threading.Thread(target=vanish, args=(live, rng.random(), rng.random())) for _ in range(clients)]
    for i, thread in enumerate(threads):
        thread.start()
        if i % 8 == 7:
            time.sleep(0.02)  # not all in one instant
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def vanish(live, part: float, patience: float) -> None:
    """Send the whole of a request or a part of it, read for a moment, leave without a word."""
    body = json.dumps(LONG | {"stream": patience < 0.7, "n": 1 + int(part * 7) % 2}).encode()
    data = head(live, len(body)) + body
    with socket.create_connection(address(live), timeout=30) as connection:
        connection.sendall(data if part > 0.3 else data[: int(len(data) * part / 0.3)])
        connection.settimeout(0.001 + patience / 10)
        try:
            while connection.recv(4096):
                continue
        except OSError:
            return


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        json.dumps(HELLO | {"stop": [f"s{i}" for i in range(10_000)]}).encode(),
        json.dumps(HELLO | {"logit_bias": {str(i): 1 for i in range(20_000)}}).encode(),
        json.dumps({"messages": [{"role": "user", "content": "x"}] * 10_001}).encode(),
        json.dumps(HELLO).replace("Hello", "\\ud83d").encode(),
        json.dumps(HELLO).encode().replace(b"Hello", b"\xff\xfe\x80"),
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e999}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": "hot"',
    ],
    ids=[
        *("deep lists", "deep objects", "stop texts", "biases", "messages", "half a character", "bytes", "infinity"),
        *("huge number", "cut off"),
    ],
)
def test_bodies_made_to_hurt_are_400s(tiny, body):
    started = time.monotonic()
    with tiny.client() as client:
        response = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text[:200]
    assert response.json()["error"]["message"]
    assert len(response.content) < 2000
    assert time.monotonic() - started < 5


def test_pages_on_the_list_get_cors_headers_and_no_others(tiny, serving):
    policy = Policy.for_address("127.0.0.1", "test-key", origins=["https://app.example"])
    with serving(EngineHost.ready(tiny.host.engine), policy) as live, live.client() as client:
        allowed, foreign = {"Origin": "https://app.example"}, {"Origin": "https://evil.example"}
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        with httpx.Client(base_url=live.url) as browser:  # preflights carry no key
            preflight = browser.options(CHAT, headers=allowed | asks)
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == "https://app.example"
            refused = browser.options(CHAT, headers=foreign | asks)
            assert refused.status_code == 400
            assert "access-control-allow-origin" not in refused.headers
            keyless = browser.post(CHAT, json=HELLO, headers=allowed)
            assert (keyless.status_code, keyless.headers["vary"]) == (401, "Origin")
        answer = client.post(CHAT, json=HELLO, headers=allowed)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert client.post(CHAT, json=HELLO, headers=foreign).status_code == 403
