"""A client that leaves frees what its request held; an abort by id does too and says so to whoever still listens."""

import json
import socket
import threading

import pytest

LONG = {"messages": [{"role": "user", "content": "Go on for ever"}], "max_tokens": 60_000, "ignore_eos": True}


def send(live, body: dict, path: str = "/v1/chat/completions") -> socket.socket:
    """A request by hand, so that the test decides when the connection ends."""
    host, port = live.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer test-key\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    connection.sendall(head.encode() + data)
    return connection


@pytest.fixture(autouse=True)
def nothing_is_left(tiny):
    yield
    tiny.eventually_empty()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("n", [1, 2])
def test_leaving_while_it_is_answered(tiny, stream, n):
    with send(tiny, LONG | {"stream": stream, "n": n}):
        tiny.eventually(lambda s: s["running"] == n and s["kv_blocks"]["used"] > 2 * n)
    tiny.eventually_empty()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_leaving_while_queued(tiny, stream):
    with send(tiny, LONG | {"n": 2}):
        tiny.eventually(lambda s: s["running"] == 2)
        with send(tiny, LONG | {"stream": stream}):
            tiny.eventually(lambda s: s["waiting"] == 1)
        state = tiny.eventually(lambda s: s["waiting"] == 0)
        assert state["running"] == 2


def test_leaving_in_the_middle_of_a_long_prompt(tiny):
    prompt = [{"role": "user", "content": "x" * 7000}]
    with send(tiny, LONG | {"messages": prompt, "stream": True}):
        tiny.eventually(lambda s: s["running"] == 1)
    tiny.eventually_empty()


def test_leaving_several_prompts(tiny):
    body = {"prompt": ["a", "b"], "max_tokens": 60_000, "ignore_eos": True, "stream": True}
    with send(tiny, body, "/v1/completions"):
        tiny.eventually(lambda s: s["running"] == 2)


def test_many_clients_vanish_at_once(tiny):
    with tiny.client() as client:  # its connection is there before the flood
        for _ in range(10):
            flood = [send(tiny, LONG | {"stream": bool(i % 2)}) for i in range(6)]
            client.get("/health")
            for connection in flood:
                connection.close()
    tiny.eventually_empty()


def test_an_abort_by_id_ends_the_answer_in_order(tiny):
    with tiny.openai() as client:
        stream = client.chat.completions.create(model="tiny-llama", **without_ours(LONG), stream=True, extra_body=OURS)
        first = next(stream)
        tiny.eventually(lambda s: s["running"] == 1)
        with tiny.client() as other:
            assert other.post("/inspect/abort", json={"request_id": first.id}).json() == {"aborted": True}
            assert other.post("/inspect/abort", json={"request_id": "req-unknown"}).json() == {"aborted": False}
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "abort"
        assert chunks[-1].timings["total_s"] > 0


def test_an_abort_of_a_queued_request(tiny):
    with send(tiny, LONG | {"n": 2}):
        tiny.eventually(lambda s: s["running"] == 2)
        with tiny.client() as client, client.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as r:
            request_id = r.headers["x-request-id"]  # known before the first token
            tiny.eventually(lambda s: s["waiting"] == 1)
            with tiny.client() as other:
                assert other.post("/inspect/abort", json={"request_id": request_id}).json() == {"aborted": True}
            text = r.read().decode()
        assert '"finish_reason":"abort"' in text
        assert text.endswith("data: [DONE]\n\n")


def test_an_abort_of_a_whole_answer_returns_what_there_is(tiny):
    answers = []

    def ask():
        with tiny.client() as client:
            answers.append(client.post("/v1/chat/completions", json=LONG).json())

    asking = threading.Thread(target=ask)
    asking.start()
    tiny.eventually(lambda s: s["running"] == 1 and s["kv_blocks"]["used"] > 3)
    (request_id,) = tiny.host._active
    with tiny.client() as other:
        other.post("/inspect/abort", json={"request_id": request_id})
    asking.join(30)
    (answer,) = answers
    assert answer["choices"][0]["finish_reason"] == "abort"
    assert answer["usage"]["completion_tokens"] > 0


def test_a_full_queue_is_a_503_with_retry_after(tiny):
    with send(tiny, LONG | {"n": 2}):
        tiny.eventually(lambda s: s["running"] == 2)
        with send(tiny, LONG | {"n": 3}), tiny.client() as client:
            tiny.eventually(lambda s: s["waiting"] == 3)
            for body in (LONG | {"n": 2}, LONG | {"n": 2, "stream": True}):
                response = client.post("/v1/chat/completions", json=body)
                assert response.status_code == 503
                assert response.headers["retry-after"] == "1"
                assert response.json()["error"]["code"] == "queue_full"
            prompts = {"prompt": ["fits", "does not fit any more"], "max_tokens": 5}
            assert client.post("/v1/completions", json=prompts).status_code == 503
            tiny.eventually(lambda s: s["waiting"] == 3)  # all or none of a request


def test_a_slow_reader_does_not_hold_up_others_and_loses_nothing(tiny):
    ours = {"stream_options": {"include_usage": True}, "return_token_ids": True}
    with send(tiny, LONG | ours | {"max_tokens": 800, "stream": True, "logprobs": True, "top_logprobs": 20}) as slow:
        with tiny.client() as client:
            for _ in range(3):
                assert client.post("/v1/chat/completions", json=LONG | {"max_tokens": 5}).status_code == 200
        tiny.eventually(lambda s: s["running"] == 0)  # generated to the end though nobody reads
        received = bytearray()
        while b"data: [DONE]" not in received[-200:]:
            received += slow.recv(65536)
    text = b"".join(_bodies(bytes(received))).decode()
    assert len(text) > 2**20  # more than all the buffers on the way hold
    chunks = [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event.startswith("data: {")]
    ids = [token for chunk in chunks for choice in chunk["choices"] for token in choice.get("token_ids", [])]
    assert len(ids) == chunks[-1]["usage"]["completion_tokens"] == 800


OURS = {"ignore_eos": True}


def without_ours(body: dict) -> dict:
    return {name: value for name, value in body.items() if name not in OURS}


def _bodies(response: bytes):
    """The chunks of a chunked HTTP/1.1 body."""
    rest = response.partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        yield rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
