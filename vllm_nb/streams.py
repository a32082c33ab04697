"""Requests in flight, as iterators for threads and for asyncio."""

import asyncio
import queue
import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from vllm_nb.engine.loop import EngineLoop
from vllm_nb.engine.scheduler import TokenOutput
from vllm_nb.errors import EngineDeadError, QueueFullError
from vllm_nb.outputs import GenerationOutput, StreamItem
from vllm_nb.response import Response

Outputs = list[TokenOutput] | None


def check_alive(outputs: Outputs, loop: EngineLoop) -> list[TokenOutput]:
    """The outputs of a step. Raises EngineDeadError when the channel says that there will be none."""
    if outputs is None:
        loop.raise_if_dead()
        raise EngineDeadError("the engine has stopped; build a new one")
    return outputs


class EngineStream:
    """Iterates over the items of one request as they are generated. `output` is the request so far.

    Leaving it early (`cancel`, `break`, the end of its `with` block, an interrupt) ends the request in the engine: the
    engine holds its channel, not the stream, so a stream that nobody holds is cancelled.
    """

    def __init__(self, loop: EngineLoop, response: Response):
        self._loop = loop
        self._response = response
        self.channel: queue.SimpleQueue[Outputs] = queue.SimpleQueue()
        self._items: list[StreamItem] = []  # received, not yet handed out, last first
        weakref.finalize(self, response.cancel)

    @property
    def request_id(self) -> str:
        return self._response.request_id

    @property
    def output(self) -> GenerationOutput:
        return self._response.output

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamItem:
        """Raises GenerationError when the request fails, EngineDeadError when the engine does."""
        try:
            while not self._items:
                if self._response.finished:
                    raise StopIteration
                self._items = self._response.receive(check_alive(self.channel.get(), self._loop))[::-1]
        except KeyboardInterrupt:
            self.cancel()
            raise
        return self._items.pop()

    def cancel(self) -> None:
        """End the request; iteration stops with items whose finish_reason is "abort". Safe at any time."""
        self._response.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.cancel()


class AsyncChannel:
    """Brings the outputs of many requests into one event loop: a single wake-up a step.

    It keeps no event loop alive, for engines outlive many: neither itself nor by queues, which know theirs.
    """

    def __init__(self, event_loop: asyncio.AbstractEventLoop):
        self._event_loop = weakref.ref(event_loop)
        self._queues: weakref.WeakValueDictionary[str, asyncio.Queue[Outputs]] = weakref.WeakValueDictionary()

    def open(self, request_id: str) -> asyncio.Queue[Outputs]:
        """For the outputs of a request, for as long as somebody holds it."""
        arriving: asyncio.Queue[Outputs] = asyncio.Queue()
        self._queues[request_id] = arriving
        return arriving

    def close(self, request_id: str) -> None:
        self._queues.pop(request_id, None)

    def put(self, outputs: Outputs) -> None:
        event_loop = self._event_loop()
        if event_loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to read
                event_loop.call_soon_threadsafe(self._dispatch, outputs)

    def _dispatch(self, outputs: Outputs) -> None:
        if outputs is None:
            for waiting in self._queues.values():
                waiting.put_nowait(None)
            return
        by_request: defaultdict[str, list[TokenOutput]] = defaultdict(list)
        for output in outputs:
            by_request[output.seq.request_id].append(output)
        for request_id, items in by_request.items():
            if (arriving := self._queues.get(request_id)) is not None:
                arriving.put_nowait(items)


class AsyncEngineStream:
    """As EngineStream, for `async for`. `batches()` gives the items of a step together."""

    def __init__(self, loop: EngineLoop, response: Response, channel: AsyncChannel):
        self._loop = loop
        self._response = response
        self._channel = channel
        self._queue = channel.open(response.request_id)
        self._items: list[StreamItem] = []

    @property
    def request_id(self) -> str:
        return self._response.request_id

    @property
    def output(self) -> GenerationOutput:
        return self._response.output

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamItem:
        while not self._items:
            self._items = (await self.next_batch())[::-1]
        return self._items.pop()

    async def next_batch(self) -> list[StreamItem]:
        """All items that have come since, at least one step's; may be empty. Raises StopAsyncIteration at the end."""
        if self._response.finished:
            self._channel.close(self.request_id)
            raise StopAsyncIteration
        try:
            outputs = [*check_alive(await self._queue.get(), self._loop)]
            while not self._queue.empty():
                outputs += check_alive(self._queue.get_nowait(), self._loop)
            return self._response.receive(outputs)
        except BaseException:
            self.cancel()
            raise

    def abort(self) -> None:
        """End the request in the engine; what it has to say of that still comes, with finish_reason "abort"."""
        self._loop.abort(self.request_id)

    def cancel(self) -> None:
        """End the request in the engine; nothing more will come. Safe at any time."""
        self._channel.close(self.request_id)
        self._response.cancel()


class Collector:
    """Runs many requests to their end on one queue, at most `window` at a time; for `generate` over a list."""

    def __init__(self, loop: EngineLoop, window: int):
        self._loop = loop
        self._window = window
        self._queue: queue.SimpleQueue[Outputs] = queue.SimpleQueue()
        self._open: dict[str, Response] = {}
        self.put = self._queue.put

    def run(self, starts: list[Callable[["Collector"], Response]]) -> list[Response]:
        """Each of `starts` submits one request with this as its channel. Results in order, also of failed requests."""
        responses: list[Response] = []
        try:
            for start in starts:
                while len(self._open) >= self._window:
                    self._receive()
                response = self._start(start)
                responses.append(response)
                self._open[response.request_id] = response
            while self._open:
                self._receive()
        except BaseException:
            for response in self._open.values():
                response.cancel()
            raise
        return responses

    def _start(self, start: Callable[["Collector"], Response]) -> Response:
        """Where there is no room while some run, it comes as they end."""
        while True:
            try:
                return start(self)
            except QueueFullError:
                if not self._open:
                    raise
            self._receive()

    def _receive(self) -> None:
        by_request: defaultdict[str, list[TokenOutput]] = defaultdict(list)
        for output in check_alive(self._queue.get(), self._loop):
            by_request[output.seq.request_id].append(output)
        for request_id, outputs in by_request.items():
            response = self._open.get(request_id)
            if response is not None and response.settle(outputs):
                del self._open[request_id]
