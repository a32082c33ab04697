"""The client of one engine over HTTP: synchronous, keeps its connections, safe to interrupt.

client = EngineClient("http://127.0.0.1:8000", token="secret")
print(client.chat("Hello", max_tokens=20).text)
with client.stream("Hello") as stream:
    for item in stream:
        print(item.text, end="")

`client.aio` is the same for asyncio, `client.openai()` a client of OpenAI's own library.
"""

import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self, overload

from vllm_nb.client.base import ABORT, SHORT, BaseClient, Query, is_ours, payload
from vllm_nb.client.completion import Completion
from vllm_nb.client.embeddings import PATH, embedding_body, vectors_of
from vllm_nb.client.event_stream import read_events
from vllm_nb.client.interrupts import heed
from vllm_nb.client.stream import ChatStream
from vllm_nb.errors import VllmNbError
from vllm_nb.events import Batch
from vllm_nb.inspection.observed import Observed
from vllm_nb.inspection.view import EngineView
from vllm_nb.messages import ToolCall, as_messages

if TYPE_CHECKING:
    import httpx
    import openai

    from vllm_nb.client.aio import AsyncEngineClient


class EngineClient(BaseClient, Observed):
    """Talks to one engine, or to any server with OpenAI's routes. Usable from several threads."""

    # Generate

    def chat(self, messages: Any, **params: Any) -> Completion:
        """The answer to a conversation (a text, a message, or a list of messages), complete.

        params: fields of SamplingParams and ChatOptions, and `model`. `tools` may hold Python functions (the answer has
        the calls, `run_tools` runs them). schema: a pydantic model, a dataclass, another type, or a JSON schema: what
        the answer's `value` is to be.

        Raises RequestError, QueueFullError, GenerationError, EngineDeadError; ValueError and TypeError for wrong
        params. An interrupt ends the request in the engine too.
        """
        return _complete(self.stream(messages, **params))

    def generate(self, prompt: str | list[int], **params: Any) -> Completion:
        """As `chat`, but the model continues `prompt`, a text or token ids, without the chat template."""
        return _complete(self.stream_text(prompt, **params))

    def stream(self, messages: Any, **params: Any) -> ChatStream:
        """As `chat`, while it is generated: enter the result, iterate over StreamItems; `.completion` is the answer so
        far. The request is sent on entering."""
        return ChatStream(self, Query.chat(messages, params))

    def stream_text(self, prompt: str | list[int], **params: Any) -> ChatStream:
        """As `stream`, for `generate`."""
        return ChatStream(self, Query.text(prompt, params))

    def batch(self, conversations: Iterable[Any], *, concurrency: int = 64, **params: Any) -> list[Completion]:
        """The answers to many conversations, `concurrency` of them asked at a time, in order.

        A request that fails alone gives a Completion with `.error`, also one that a full server goes on refusing for
        ten minutes in which nothing of the batch is answered; an engine that dies raises EngineDeadError.
        """
        from vllm_nb.client.batch import run_batch

        return run_batch(self, conversations, concurrency, params)

    @overload
    def embed(
        self, inputs: str, *, pooling: str = ..., dimensions: int | None = ..., model: str | None = ...
    ) -> list[float]: ...
    @overload
    def embed(
        self,
        inputs: list[str] | tuple[str, ...],
        *,
        pooling: str = ...,
        dimensions: int | None = ...,
        model: str | None = ...,
    ) -> list[list[float]]: ...
    def embed(
        self, inputs: Any, *, pooling: str = "mean", dimensions: int | None = None, model: str | None = None
    ) -> list[float] | list[list[float]]:
        """The embedding of a text, or of each of several: vectors of length 1.

        pooling: "mean" over the model's final hidden states, or the "last" token's. dimensions: take the first so many.
        Raises as `chat`.
        """
        body = embedding_body(model or self.model, inputs, pooling, dimensions)
        return vectors_of(self._call("POST", PATH, body, timeout=None), inputs)

    def run_tools(
        self,
        messages: Any,
        tools: Iterable[Callable[..., Any]],
        *,
        confirm: Callable[[ToolCall], bool] = lambda call: True,
        max_rounds: int = 8,
        **params: Any,
    ) -> Completion:
        """As `chat`, but the calls of an answer are run and their results sent back, until an answer has none.

        tools: functions with type hints and docstrings. confirm: asked before each call. An exception of a tool goes to
        the model as text. Raises RequestError after `max_rounds` rounds of calls.
        """
        from vllm_nb.client.tools import Toolbox, run_rounds

        box = Toolbox(tools)
        options = {"tools": box.tools} | params
        conversation = [message.to_dict() for message in as_messages(messages)]
        ask = partial(self.chat, **options)
        return run_rounds(ask, conversation, box, confirm=confirm, max_rounds=max_rounds)[0]

    def abort(self, request_id: str) -> bool:
        """End a request. False when the engine knows no such request, or cannot be asked."""
        try:
            return bool(self._call("POST", "/inspect/abort", {"request_id": request_id}, timeout=ABORT).get("aborted"))
        except VllmNbError:
            return False

    # The same for others

    @cached_property
    def aio(self) -> "AsyncEngineClient":
        """This client for asyncio."""
        from vllm_nb.client.aio import AsyncEngineClient

        return AsyncEngineClient.like(self)

    def openai(self, **options: Any) -> "openai.OpenAI":
        """An `openai.OpenAI` of this server. options: its own. Raises VllmNbError where that package is missing."""
        from vllm_nb.client.openai_sdk import make_client

        return make_client(self, "OpenAI", "DefaultHttpxClient", options)

    def tokenize(self, text: str) -> list[int]:
        """The token ids of a text as it is."""
        return list(self._call("POST", "/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"])

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, without special ones such as <|im_end|>."""
        body = {"tokens": list(token_ids), "skip_special_tokens": True}
        return str(self._call("POST", "/detokenize", body)["prompt"])

    # Look

    def health(self) -> dict[str, Any]:
        """What /health says; also of an engine that loads or has failed. Raises EngineDeadError when nobody answers."""
        response = self.send("GET", "/health", timeout=SHORT)
        health = payload(response.status_code, response.read())
        if "status" not in health:
            raise self.error_of(response.status_code, response.headers, response.content)
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

    def view(self) -> EngineView:
        """The state between two steps: queues, batch, block tables, prefix cache."""
        state = self._call("GET", "/inspect/state?complete=true")
        return EngineView.from_snapshot(state.get("snapshot") or {}, state.get("offset", 0))

    def events(self, offset: int | None = None, *, follow: bool = True) -> Generator[Batch, None, None]:
        return read_events(self, offset, follow)

    @cached_property
    def default_sampling(self) -> dict[str, float]:
        """What the model's makers advise, completed by neutral values: temperature, top_k, top_p, min_p and
        repetition_penalty of requests that don't say."""
        return self._call("GET", "/inspect/sampling")

    def go_on(self, token_ids: list[int], **params: Any) -> None:
        self.generate(token_ids, **params)

    @property
    def identity(self) -> str:
        return self.url

    # Step debugger

    def pause(self) -> None:
        """Let the engine stand still between two steps; requests are taken and aborted as ever."""
        self._call("POST", "/inspect/pause", {}, timeout=None)

    def step(self, count: int = 1) -> int:
        """Make `count` steps and stand still. Returns how many were made: fewer when nothing is left to compute, or
        somebody pauses or resumes meanwhile. Raises RequestError for a count below 1."""
        return int(self._call("POST", "/inspect/step", {"count": count}, timeout=None)["made"])

    def resume(self) -> None:
        """Let the engine run on."""
        self._call("POST", "/inspect/resume", {})

    @property
    def paused(self) -> bool:
        return bool(self.state()["paused"])

    # End

    @property
    def model(self) -> str:
        """The model's name as the server has it."""
        return self._model or self._model_of(self._call("GET", "/v1/models"))

    @property
    def ours(self) -> bool:
        """Whether it is an engine of this package."""
        if self._ours is None:
            response = self.send("GET", "/health", timeout=SHORT)
            self._ours = is_ours(payload(response.status_code, response.read()))
        return self._ours

    def set_idle_timeout(self, seconds: float | None) -> None:
        """How long the engine stays without requests; None: for ever."""
        self._call("POST", "/inspect/idle_timeout", {"seconds": seconds})

    def disown(self) -> None:
        """Let the engine stay when the process ends that it was to end with."""
        self._call("POST", "/inspect/disown", {})

    def shutdown(self) -> None:
        """Ask the engine process to end. `vllm_nb.stop` also waits until it has."""
        self._call("POST", "/inspect/shutdown", {}, timeout=ABORT)

    def close(self) -> None:
        """Give up the connections; the engine stays."""
        if "_http" in self.__dict__:
            self._finalizer()
            del self._http

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Requests

    @cached_property
    def _http(self) -> "httpx.Client":
        import httpx

        http = httpx.Client(**self._connection())
        self._finalizer = weakref.finalize(self, http.close)  # of a client that nobody closes
        self._finalizer.atexit = False
        return http

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
        heed()
        try:
            return self._http.send(self._http.build_request(method, path, json=body, **limits), stream=stream)
        except (httpx.TransportError, UnicodeEncodeError) as error:
            raise self.failure(error) from None

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout: float | None = SHORT
    ) -> dict[str, Any]:
        response = self.send(method, path, body, timeout=timeout)
        return self._payload(path, response.status_code, response.headers, response.read())


def _complete(stream: ChatStream) -> Completion:
    with stream:
        for _ in stream:
            continue
    return stream.completion
