"""Batches that a server refuses: what passes is waited for, what does not pass fails, with its reason."""

import itertools
import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_nb import VllmNbError, batch
from vllm_nb.client import patience
from vllm_nb.client.base import seconds_to_wait
from vllm_nb.client.http import EngineClient
from vllm_nb.client.process import start, stop
from vllm_nb.errors import QueueFullError

QUOTA = {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}
RATE = {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._reply(200, {"data": [{"id": "crowded"}]})

    def do_POST(self):
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        self.server.asked.append(prompt)
        if prompt == "slow":
            self.server.slow_is_out.set()
            self.server.slow_may_end.wait(60)
        if prompt == "later":
            self.server.slow_is_out.wait(60)
        if prompt.startswith("twice") and self.server.asked.count(prompt) == 1:
            return self._reply(self.server.status, {"error": self.server.error}, {"Retry-After": "0"})
        if prompt != "slow" and self.server.refusals:
            self.server.refusals -= 1
            if not self.server.refusals:
                self.server.slow_may_end.set()
            headers = self.server.retry_after and {"Retry-After": self.server.retry_after}
            return self._reply(self.server.status, {"error": self.server.error}, headers)
        choice = {"index": 0, "message": {"role": "assistant", "content": "Yes"}, "finish_reason": "stop"}
        return self._reply(200, {"id": "x", "model": "crowded", "choices": [choice]})

    def _reply(self, status, body, headers=None):
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class CrowdedServer(ThreadingHTTPServer):
    """Refuses the next `refusals` requests, but for the prompt "slow", which it answers when those are used up; "twice"
    it has to be asked twice."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.refusals, self.status, self.error, self.retry_after = 0, 429, RATE, None
        self.asked = []
        self.slow_is_out, self.slow_may_end = threading.Event(), threading.Event()


@pytest.fixture
def server():
    with CrowdedServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(server):
    with EngineClient(f"http://127.0.0.1:{server.server_port}", "key") as client:
        yield client


def test_a_quota_that_is_used_up_is_not_asked_again(server, client):
    server.refusals, server.error = 3, QUOTA
    reason = f"engine '{client.url}' at {client.url} has no quota left for this token: {QUOTA['message']}"
    assert [each.error for each in client.batch(["a", "b"])] == [reason] * 2
    assert sorted(server.asked) == ["a", "b"]
    with pytest.raises(VllmNbError, match="has no quota left for this token"):
        client.chat("c")


@pytest.mark.parametrize("status", [429, 503])
def test_what_may_pass_is_asked_again(server, client, monkeypatch, status):
    monkeypatch.setattr(patience, "FIRST", 0.001)
    server.refusals, server.status, server.retry_after = 5, status, "0"
    assert [each.text for each in client.batch(["a", "b"])] == ["Yes"] * 2
    assert len(server.asked) == 7


def test_waits_grow_and_none_is_shorter_than_the_server_says(server, client, monkeypatch):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr(patience.asyncio, "sleep", sleep)
    server.refusals, server.retry_after = 8, "3"
    (answer,) = client.batch(["a"])
    assert answer.text == "Yes"
    longest = (1, 2, 4, 8, 16, 32, 60, 60)
    assert all(max(3, most / 2) <= wait <= max(3, most) for wait, most in zip(waits, longest, strict=True))


def test_rows_fail_when_nothing_of_their_batch_is_answered(server, client, monkeypatch):
    monkeypatch.setattr(patience, "LIMIT", 0)
    server.refusals, server.retry_after = 2, "3"
    results = batch(["a", "b"], engine=client, progress=False)
    reason = (
        "Rate limit reached (given up: nothing of this batch was answered for 0 s, and the next try would be in 3 s; "
        "run what failed again later, or with a lower concurrency)"
    )
    assert results.errors == [reason] * 2
    assert len(server.asked) == 2
    assert results.resume().values == ["Yes"] * 2  # as other rows that failed


def test_a_wait_that_is_longer_than_a_batch_waits_is_not_begun(server, client):
    server.refusals, server.retry_after = 1, "86400"
    (answer,) = client.batch(["a"])
    assert "the next try would be in 86400 s" in answer.error
    assert server.asked == ["a"]


def test_a_batch_of_which_a_slow_answer_is_on_its_way_gets_somewhere(server, client, monkeypatch):
    for name, seconds in {"FIRST": 0.01, "LONGEST": 0.01, "LIMIT": 0.1, "ACCEPTED": 0.05}.items():
        monkeypatch.setattr(patience, name, seconds)
    server.refusals, server.retry_after = 30, "0"  # which take longer than LIMIT
    assert [each.error for each in client.batch(["slow", "later"])] == [None, None]
    assert server.asked.count("later") == 31


def test_time_counts_from_the_first_refusal(monkeypatch):
    """Not from the last answer: who reads an iterator's answers may take his time over one."""
    times = iter([1000.0, 1590.0, 1600.0])
    monkeypatch.setattr(patience, "monotonic", lambda: next(times))
    asks, error = patience.Patience(), QueueFullError("full", 1)
    asks._check(error, 1)
    asks._check(error, 1)
    with pytest.raises(QueueFullError, match=r"full \(given up: nothing of this batch was answered for 600 s"):
        asks._check(error, 1)


def test_an_answer_begins_the_time_anew(server, client, monkeypatch):
    monkeypatch.setattr(patience, "FIRST", 0.001)
    clock = itertools.count(0, patience.LIMIT / 3)  # looked at three times a prompt
    monkeypatch.setattr(patience, "monotonic", lambda: next(clock))
    answers = client.batch(["twice a", "twice b", "twice c"], concurrency=1)
    assert [answer.error for answer in answers] == [None] * 3


def test_the_full_queue_of_an_engine_of_ours_is_waited_for(runtime, tiny_model_path):
    outcome = start(tiny_model_path, num_kv_blocks=512, max_num_seqs=2, threads=1, max_queued_requests=1)
    with outcome.client as client:
        answers = client.batch([f"Say {number}" for number in range(9)], max_tokens=4, ignore_eos=True)
    assert [answer.finish_reason for answer in answers] == ["length"] * 9
    stop()


def test_what_the_header_says():
    assert [seconds_to_wait(text) for text in ("7", "0", "0.5", "", "soon", "-1", "nan")] == [7, 0, 0.5, 1, 1, 1, 1]
    assert 98 < seconds_to_wait(formatdate(time.time() + 100, usegmt=True)) <= 100
    assert seconds_to_wait("Mon, 30 Nov 2020 23:16:00 GMT") == 0


@given(st.text(max_size=40) | st.from_regex(r"\w{3}, \d\d \w{3} \d+ \d\d:\d\d:\d\d \w{3}", fullmatch=True))
def test_no_header_is_too_odd(text):
    assert seconds_to_wait(text) >= 0
