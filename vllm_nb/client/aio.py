"""The client of one engine for asyncio; what it sends and reads is the synchronous client's."""

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from vllm_nb.client.answers import AnswerReader
from vllm_nb.client.base import ABORT, SHORT, BaseClient, Query, is_ours, payload
from vllm_nb.client.completion import Completion
from vllm_nb.client.embeddings import PATH, embedding_body, vectors_of
from vllm_nb.client.loops import LoopConnections
from vllm_nb.client.stream import NOT_ENTERED
from vllm_nb.errors import RequestError, VllmNbError
from vllm_nb.outputs import StreamItem

if TYPE_CHECKING:
    import httpx
    import openai


class AsyncEngineClient(BaseClient):
    """As EngineClient, with `await`. Usable in one event loop after another, such as those of several asyncio.run, and
    in those of several threads."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        name: str | None = None,
        model: str | None = None,
        ours: bool | None = None,
    ):
        super().__init__(url, token, name=name, model=model, ours=ours)
        self._connections = LoopConnections(self._connection)

    # Generate

    async def chat(self, messages: Any, **params: Any) -> Completion:
        """The answer to a conversation, complete. A task that is cancelled ends the request in the engine too."""
        return await self.answer(Query.chat(messages, params))

    async def generate(self, prompt: str | list[int], **params: Any) -> Completion:
        """As `chat`, but the model continues `prompt`, a text or token ids, without the chat template."""
        return await self.answer(Query.text(prompt, params))

    def stream(self, messages: Any, **params: Any) -> "AsyncChatStream":
        """As `chat`, while it is generated: `async with` the result, `async for` over StreamItems."""
        return AsyncChatStream(self, Query.chat(messages, params))

    def stream_text(self, prompt: str | list[int], **params: Any) -> "AsyncChatStream":
        """As `stream`, for `generate`."""
        return AsyncChatStream(self, Query.text(prompt, params))

    async def batch(self, conversations: Iterable[Any], *, concurrency: int = 64, **params: Any) -> list[Completion]:
        """The answers to many conversations, in order; as EngineClient.batch."""
        from vllm_nb.client.batch import in_order

        return await in_order(self, conversations, concurrency, params)

    async def embed(
        self, inputs: Any, *, pooling: str = "mean", dimensions: int | None = None, model: str | None = None
    ) -> Any:
        """The embedding of a text, a list of numbers, or of each of several; as EngineClient.embed."""
        body = embedding_body(model or await self.model(), inputs, pooling, dimensions)
        return vectors_of(await self._call("POST", PATH, body, timeout=None), inputs)

    async def answer(self, query: Query) -> Completion:
        """In one piece: a stream would cost a message a token."""
        body = query.body(await self.model(), stream=False, ours=await self.ours())
        reply = await self._call("POST", query.path, body, timeout=None)
        return AnswerReader(self, Completion().of(query, self.sync)).whole(reply)

    async def abort(self, request_id: str) -> bool:
        """End a request. False when the engine knows no such request, or cannot be asked."""
        try:
            reply = await self._call("POST", "/inspect/abort", {"request_id": request_id}, timeout=ABORT)
        except VllmNbError:
            return False
        return bool(reply.get("aborted"))

    # The same for others

    @property
    def sync(self) -> Any:
        """This client without asyncio: an EngineClient."""
        from vllm_nb.client.http import EngineClient

        return EngineClient.like(self)

    def openai(self, **options: Any) -> "openai.AsyncOpenAI":
        """An `openai.AsyncOpenAI` of this server. options: its own."""
        from vllm_nb.client.openai_sdk import make_client

        return make_client(self, "AsyncOpenAI", "DefaultAsyncHttpxClient", options)

    # Look and end

    async def health(self) -> dict[str, Any]:
        """What /health says; also of an engine that loads or has failed."""
        response = await self.send("GET", "/health", timeout=SHORT)
        health = payload(response.status_code, response.content)
        if "status" not in health:
            raise self.error_of(response.status_code, response.headers, response.content)
        return health

    async def state(self) -> dict[str, Any]:
        """Queues, KV blocks and integrity of the engine."""
        return await self._call("GET", "/inspect/state")

    async def model(self) -> str:
        """The model's name as the server has it."""
        return self._model or self._model_of(await self._call("GET", "/v1/models"))

    async def ours(self) -> bool:
        """Whether it is an engine of this package."""
        if self._ours is None:
            response = await self.send("GET", "/health", timeout=SHORT)
            self._ours = is_ours(payload(response.status_code, response.content))
        return self._ours

    async def close(self) -> None:
        """Give up the connections of the loop that runs; the engine stays."""
        await self._connections.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Requests

    async def send(
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

        client = await self._connections.here()
        limits: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        try:
            return await client.send(client.build_request(method, path, json=body, **limits), stream=stream)
        except (httpx.TransportError, UnicodeEncodeError) as error:
            raise self.failure(error) from None

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout: float | None = SHORT
    ) -> dict[str, Any]:
        response = await self.send(method, path, body, timeout=timeout)
        return self._payload(path, response.status_code, response.headers, response.content)


class AsyncChatStream:
    """As ChatStream: leaving it early, by an error or a cancelled task, ends the request in the engine."""

    def __init__(self, client: AsyncEngineClient, query: Query):
        self.completion = Completion(str(query.params.get("model") or "")).of(query, client.sync)
        self._client = client
        self._query = query
        self._response: httpx.Response | None = None
        self._items: AsyncIterator[StreamItem] | None = None
        self._over = False

    @property
    def request_id(self) -> str:
        return self.completion.request_id

    async def __aenter__(self) -> Self:
        """Sends the request. Raises RequestError, QueueFullError, EngineDeadError."""
        query = self._query
        body = query.body(await self._client.model(), stream=True, ours=await self._client.ours())
        response = await self._client.send("POST", query.path, body, stream=True)
        self._response = response
        if response.status_code != 200:
            self._over = True
            raise self._client.error_of(response.status_code, response.headers, await response.aread())
        self.completion.request_id = response.headers.get("x-request-id", "")
        self._items = self._read(response)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.abort()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamItem:
        if self._over:
            raise StopAsyncIteration
        if self._items is None:
            raise RequestError(NOT_ENTERED)
        return await anext(self._items)

    async def abort(self) -> None:
        """End the request in the engine, if it still runs; what has come stays in `completion`."""
        if self._over:
            return
        self._end()
        if self._response is not None:
            await self._response.aclose()  # the engine sees the hang-up at once, and a cancelled task may not wait

    async def _read(self, response: "httpx.Response") -> AsyncIterator[StreamItem]:
        import httpx

        reader = AnswerReader(self._client, self.completion)
        try:
            async for piece in response.aiter_bytes():
                for item in reader.feed(piece):
                    yield item
            reader.check_complete()
        except httpx.TransportError as error:
            if self._over:
                return
            self._end()
            raise self._client.gone(error) from None
        except Exception:
            self._end()
            raise
        self._over = True
        await response.aclose()

    def _end(self) -> None:
        self._over = True
        self.completion.mark_aborted()
