"""Answers that live as long as their client: server-sent events, and whole answers whose work ends with a hang-up."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, aclosing, suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vllm_nb.server.errors import error_event
from vllm_nb.server.host import InEngine

if TYPE_CHECKING:
    from vllm_nb.outputs import StreamItem

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
REQUEST_ID = "X-Request-Id"
CLIENT_CLOSED_REQUEST = 499  # nginx's status; nobody reads it


class ClientLeft(Exception):
    """The client hung up before its answer was complete; there is nobody to tell."""


async def until_hangup(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; when the client leaves first, `work` is cancelled and ClientLeft raised."""
    task = asyncio.ensure_future(work)
    hangup = asyncio.ensure_future(_hangup(receive))
    try:
        await asyncio.wait({task, hangup}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        hangup.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _hangup(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


class EventStream(Response):
    """Server-sent events; each chunk of `events` is one write, and may hold several events.

    An error ends the stream with `error_event` of it, and `end` always follows. When the client leaves, the generator
    is cancelled where it waits. `lifetime` is entered for as long as the answer takes, even if the client has left
    before it begins. The request's id is in a header, so that a client can abort what has not yet brought a token.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        request_id: str | None,
        lifetime: AbstractContextManager[None],
        *,
        error_event: Callable[[BaseException], bytes] = error_event,
        end: bytes = DONE,
    ):
        named = {} if request_id is None else {REQUEST_ID: request_id}
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"} | named)
        del self.headers["content-length"]
        self._events = events
        self._lifetime = lifetime
        self._error_event = error_event
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._lifetime, suppress(ClientLeft):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await until_hangup(receive, self._write(send))

    async def _write(self, send: Send) -> None:
        try:
            async with aclosing(self._events) as events:
                async for chunk in events:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception as error:
            await send({"type": "http.response.body", "body": self._error_event(error), "more_body": True})
        await send({"type": "http.response.body", "body": self._end, "more_body": False})


class ItemStream(InEngine, Protocol):
    """What brings the items of one answer."""

    async def next_batch(self) -> "list[StreamItem]": ...


async def batches(streams: Sequence[ItemStream]) -> "AsyncGenerator[tuple[int, list[StreamItem]], None]":
    """(index of the stream, its items of a step or more) from all streams as they come."""
    if len(streams) == 1:
        with suppress(StopAsyncIteration):
            while True:
                yield 0, await streams[0].next_batch()
    else:
        async for batch in _merged(streams):
            yield batch


async def _merged(streams: Sequence[ItemStream]) -> "AsyncGenerator[tuple[int, list[StreamItem]], None]":
    waiting = {asyncio.ensure_future(stream.next_batch()): index for index, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = waiting.pop(task)
                try:
                    items = task.result()
                except StopAsyncIteration:
                    continue
                waiting[asyncio.ensure_future(streams[index].next_batch())] = index
                yield index, items
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
