"""The client of one engine over HTTP: synchronous, keeps its connections, safe to interrupt.

client = EngineClient("http://127.0.0.1:8000", token="secret")
print(client.chat("Hello", max_tokens=20).text)
with client.stream("Hello") as stream:
    for item in stream:
        print(item.text, end="")
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from vllm_nb.client.completion import Completion
from vllm_nb.client.stream import ChatStream
from vllm_nb.errors import EngineDeadError, GenerationError, QueueFullError, RequestError, VllmNbError
from vllm_nb.messages import as_messages
from vllm_nb.sampling import SamplingParams

if TYPE_CHECKING:
    import httpx

_SHORT = 10.0  # seconds, for what an engine answers at once
_ABORT = 2.0  # seconds; an interrupted user does not wait longer


class EngineClient:
    """Talks to one engine, or to any server with OpenAI's routes. Usable from several threads.

    url: without the /v1. token: bearer token, None where the server asks for none. name: for messages to people. model:
    what to ask for; None: whatever the server has.
    """

    def __init__(self, url: str, token: str | None = None, *, name: str | None = None, model: str | None = None):
        self.url = url.rstrip("/").removesuffix("/v1")
        self.token = token
        self.name = name or self.url
        self._model = model

    def __repr__(self) -> str:
        return f"EngineClient({self.url!r}, name={self.name!r})"

    # Generate

    def chat(self, messages: Any, **params: Any) -> Completion:
        """The answer to a conversation (a text, a message, or a list of messages), complete.

        params: fields of SamplingParams, and `model`. Raises RequestError, QueueFullError, GenerationError,
        EngineDeadError; ValueError and TypeError for wrong params. An interrupt ends the request in the engine too.
        """
        with self.stream(messages, **params) as stream:
            for _ in stream:
                continue
        return stream.completion

    def stream(self, messages: Any, **params: Any) -> ChatStream:
        """The same as it is generated: enter the result, iterate over StreamItems; `.completion` is the answer so far.
        The request is sent on entering."""
        body = self._body(params) | {"messages": [message.to_dict() for message in as_messages(messages)]}
        if "logprobs" in body:
            body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        return ChatStream(self, "/v1/chat/completions", body)

    def stream_text(self, prompt: str, **params: Any) -> ChatStream:
        """As `stream`, but the model continues `prompt` as it is, without the chat template."""
        body = {"prompt": prompt, "max_tokens": None}  # else OpenAI's 16
        return ChatStream(self, "/v1/completions", body | self._body(params))

    def _body(self, params: dict[str, Any]) -> dict[str, Any]:
        """What both kinds of request say."""
        body = {"model": params.pop("model", None) or self.model} | _sampling(params)
        return body | {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}

    def abort(self, request_id: str) -> bool:
        """End a request. False when the engine knows no such request, or cannot be asked."""
        try:
            return bool(self._call("POST", "/inspect/abort", {"request_id": request_id}, timeout=_ABORT).get("aborted"))
        except VllmNbError:
            return False

    # Look and end

    def health(self) -> dict[str, Any]:
        """What /health says; also of an engine that loads or has failed. Raises EngineDeadError when nobody answers."""
        response = self.send("GET", "/health", timeout=_SHORT)
        health = _payload(response)
        if "status" not in health:
            raise self.error_of(response)
        return health

    def state(self) -> dict[str, Any]:
        """Queues, KV blocks and integrity of the engine."""
        return self._call("GET", "/inspect/state")

    def memory(self) -> dict[str, Any]:
        """Bytes by what they are for: "predicted" before the model was loaded, "measured" now."""
        return self._call("GET", "/inspect/memory")

    @cached_property
    def read_rate(self) -> float:
        """Bytes a second that the engine's machine reads from memory, as it measured when first asked."""
        return float(self._call("GET", "/inspect/machine", timeout=60.0)["read_bytes_per_second"])

    @property
    def model(self) -> str:
        """The model's name as the server has it."""
        if self._model is None:
            cards = self._call("GET", "/v1/models").get("data") or [{}]
            self._model = str(cards[0].get("id", ""))
        return self._model

    def set_idle_timeout(self, seconds: float | None) -> None:
        """How long the engine stays without requests; None: for ever."""
        self._call("POST", "/inspect/idle_timeout", {"seconds": seconds})

    def shutdown(self) -> None:
        """Ask the engine process to end. `vllm_nb.stop` also waits until it has."""
        self._call("POST", "/inspect/shutdown", {}, timeout=_ABORT)

    def close(self) -> None:
        """Give up the connections; the engine stays."""
        if "_http" in self.__dict__:
            self._http.close()
            del self._http

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Requests

    @cached_property
    def _http(self) -> "httpx.Client":
        import httpx

        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.token}"} if self.token else {},
            timeout=httpx.Timeout(None, connect=5.0),  # a queued request may wait long
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=30.0),
            trust_env=False,  # a proxy of the environment must not see loopback traffic
            verify=self.url.startswith("https:"),  # reading the certificates takes 0.1 s
        )

    def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        stream: bool = False,
    ) -> "httpx.Response":
        """One HTTP exchange whatever its status. Raises EngineDeadError when there is nobody to answer."""
        import httpx

        limits: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        try:
            return self._http.send(self._http.build_request(method, path, json=body, **limits), stream=stream)
        except httpx.TimeoutException:
            raise EngineDeadError(f"engine {self.name!r} at {self.url} does not answer") from None
        except httpx.TransportError as error:
            raise self.gone(error) from None
        except UnicodeEncodeError as error:
            raise RequestError(f"the request holds a lone surrogate, half a character: {error.object[:40]!r}") from None

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout: float = _SHORT
    ) -> dict[str, Any]:
        response = self.send(method, path, body, timeout=timeout)
        if response.status_code != 200:
            raise self.error_of(response)
        return _payload(response)

    # Errors

    def gone(self, cause: Exception) -> EngineDeadError:
        """For a connection that was refused or broke."""
        return EngineDeadError(
            f"engine {self.name!r} at {self.url} is not running any more ({cause}): start it again with `%vllm start`, "
            "vllm_nb.start() or the same command; `%vllm ps` or `vllm-nb ps` shows what runs"
        )

    def error_of(self, response: "httpx.Response") -> VllmNbError:
        """The exception for an answer that is not 200."""
        retry_after = response.headers.get("retry-after", "")
        wait = float(retry_after) if retry_after.isdecimal() else 1.0
        return self.error(response.status_code, _payload(response).get("error"), wait)

    def error(self, status: int, details: Any, retry_after: float = 1.0) -> VllmNbError:
        """The exception for OpenAI's error object."""
        details = details if isinstance(details, Mapping) else {"message": details}
        message = str(details.get("message") or f"HTTP status {status}")
        if status == 401:
            return VllmNbError(f"engine {self.name!r} at {self.url} refuses the token: {message}")
        if status == 503 and details.get("code") == "engine_dead":
            return EngineDeadError(f"{message}; `%vllm start` or vllm_nb.start() starts a new engine")
        if status in (429, 503):
            return QueueFullError(message, retry_after)
        return GenerationError(message) if status >= 500 else RequestError(message)


def _payload(response: "httpx.Response") -> dict[str, Any]:
    """The object in the body; for anything else, an error shape that quotes its beginning."""
    try:
        payload = json.loads(response.read())
    except ValueError:
        payload = None
    if isinstance(payload, dict):
        return payload
    return {"error": {"message": f"HTTP status {response.status_code}: {response.text[:200]}"}}


_SAMPLING = {f.name: f.default for f in fields(SamplingParams)}


def _sampling(params: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's fields for those of SamplingParams, checked before anything is sent."""
    for name in params:
        if name not in _SAMPLING:
            near = difflib.get_close_matches(name, _SAMPLING, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_SAMPLING)}"
            raise TypeError(f"unknown parameter {name!r}; {hint}")
    checked = SamplingParams(**params)
    given = {name: getattr(checked, name) for name in params}
    return {name: value for name, value in given.items() if value != _SAMPLING[name]}
