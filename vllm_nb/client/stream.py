"""One streamed answer of the synchronous client, and an interrupt that reaches the engine."""

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from vllm_nb.client.answers import AnswerReader
from vllm_nb.client.base import Query
from vllm_nb.client.completion import Completion
from vllm_nb.errors import RequestError
from vllm_nb.outputs import StreamItem

if TYPE_CHECKING:
    import httpx

    from vllm_nb.client.http import EngineClient


NOT_ENTERED = (
    "a stream is used in a `with` block, whose end ends the request: `with client.stream(...) as stream: ...`, and "
    "`async with client.aio.stream(...) as stream: ...`"
)


class ChatStream:
    """Iterates over an answer as it is generated; `completion` is the answer so far.

    Leaving it early, by `break`, an error or an interrupt, ends the request in the engine and marks the completion
    with finish_reason "abort".
    """

    def __init__(self, client: "EngineClient", query: Query):
        self.completion = Completion(str(query.params.get("model") or "")).of(query, client)
        self._client = client
        self._query = query
        self._response: httpx.Response | None = None
        self._items: Iterator[StreamItem] = iter(())
        self._over = False

    @property
    def request_id(self) -> str:
        return self.completion.request_id

    def snapshot(self) -> Completion:
        """A copy of what there is, which later pieces do not change."""
        return copy.deepcopy(self.completion).of(self._query, self._client)

    def __enter__(self) -> Self:
        """Sends the request. Raises RequestError, QueueFullError, EngineDeadError."""
        query = self._query
        body = query.body(self._client.model, stream=True, ours=self._client.ours)
        response = self._client.send("POST", query.path, body, stream=True)
        self._response = response
        if response.status_code != 200:
            self._over = True
            raise self._client.error_of(response.status_code, response.headers, response.read())
        self.completion.request_id = response.headers.get("x-request-id", "")
        self._items = self._read(response)
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamItem:
        if self._over:  # what had arrived before an abort is not wanted any more
            raise StopIteration
        if self._response is None:
            raise RequestError(NOT_ENTERED)
        try:
            return next(self._items)
        except KeyboardInterrupt:
            self.abort()
            raise

    def abort(self) -> None:
        """End the request in the engine, if it still runs; what has come stays in `completion`."""
        if self._over:
            return
        self._over = True
        self.completion.mark_aborted()
        try:
            if self.request_id:
                self._client.abort(self.request_id)
        finally:
            if self._response is not None:
                self._response.close()  # an engine that could not be asked sees the hang-up

    def _read(self, response: "httpx.Response") -> Iterator[StreamItem]:
        import httpx

        reader = AnswerReader(self._client, self.completion)
        try:
            for piece in response.iter_bytes():
                yield from reader.feed(piece)
            reader.check_complete()
        except httpx.TransportError as error:
            if self._over:  # aborted meanwhile, perhaps by another thread: nothing is wrong
                return
            self._fail()
            raise self._client.gone(error) from None
        except Exception:
            self._fail()
            raise
        self._over = True
        response.close()

    def _fail(self) -> None:
        """What there is stays, as a completion that was cut off; there is nothing to abort any more."""
        self._over = True
        self.completion.mark_aborted()
        if self._response is not None:
            self._response.close()
