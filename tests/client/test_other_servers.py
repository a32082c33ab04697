"""A server that is not ours and takes OpenAI's fields only: everything works that can, and the rest says so."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import vllm_nb
from vllm_nb.errors import VllmNbError

FIELDS = {
    *("model", "messages", "stream", "stream_options", "max_tokens", "temperature", "top_p", "seed", "stop", "n"),
    *("logprobs", "top_logprobs", "frequency_penalty", "presence_penalty", "tools", "response_format"),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, message: str) -> None:
        self.reply(status, json.dumps({"error": {"message": message}}).encode())

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer key":
            return self.refuse(401, "Incorrect API key provided")
        if self.path != "/v1/models":
            return self.refuse(404, "Invalid URL")
        return self.reply(200, json.dumps({"data": [{"id": "gpt-x"}]}).encode())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self.refuse(404, "Invalid URL")
        if unknown := request.keys() - FIELDS:
            return self.refuse(400, f"Unrecognized request argument supplied: {min(unknown)}")
        self.server.last_request = request
        head = {"id": "chatcmpl-1", "model": request["model"]}
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        if not request.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "Hi you"}, "finish_reason": "stop"}
            return self.reply(200, json.dumps(head | {"choices": [choice], "usage": usage}).encode())
        chunks = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("Hi", " you")]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        chunks.append({"choices": [], "usage": usage})
        events = [f"data: {json.dumps(head | chunk)}\n\n" for chunk in chunks]
        return self.reply(200, "".join([*events, "data: [DONE]\n\n"]).encode(), "text/event-stream")

    def log_message(self, *_: object) -> None:
        pass


class Url(str):
    def __new__(cls, text: str, server: ThreadingHTTPServer):
        url = super().__new__(cls, text)
        url.server = server
        return url


@pytest.fixture(scope="module")
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Url(f"http://127.0.0.1:{server.server_port}/v1", server)
    server.shutdown()
    thread.join()
    server.server_close()


def test_answers(url):
    with vllm_nb.connect(url, token="key") as client:
        completion = client.chat("Hello", max_tokens=5, logprobs=1)
        assert (completion.text, completion.model, completion.finish_reason) == ("Hi you", "gpt-x", "stop")
        assert completion.summary == "2 tokens"
        assert not client.ours
        assert [each.text for each in client.batch(["a", "b"])] == ["Hi you"] * 2
        assert asyncio.run(client.aio.chat("Hello")).text == "Hi you"
        assert client.openai().models.list().data[0].id == "gpt-x"


def test_what_only_our_engine_can_do_says_so(url):
    with vllm_nb.connect(url, token="key") as client:
        for ask in (client.state, client.shutdown, lambda: client.set_idle_timeout(None)):
            with pytest.raises(VllmNbError, match=r"only an engine of vllm_nb can do this, and this is another server"):
                ask()
        assert client.abort("x") is False
        with pytest.raises(VllmNbError, match="Unrecognized request argument supplied: top_k"):
            client.chat("Hello", top_k=5)


def test_structured_output_and_tools_are_asked_for_in_openais_fields(url):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "depth", "description": "", "parameters": schema}}
    with vllm_nb.connect(url, token="key") as client:
        client.chat("x", structured_outputs={"json": schema}, tools=[tool])
        assert url.server.last_request["response_format"]["json_schema"]["schema"] == schema
        assert url.server.last_request["tools"] == [tool]
        client.chat("x", structured_outputs={"json_object": True})
        assert url.server.last_request["response_format"] == {"type": "json_object"}
        with pytest.raises(VllmNbError, match="Unrecognized request argument supplied: structured_outputs"):
            client.chat("x", structured_outputs={"choice": ["a", "b"]})


def test_a_wrong_key(url):
    with vllm_nb.connect(url) as client, pytest.raises(VllmNbError, match="refuses the token: Incorrect API key"):
        client.chat("Hello")
