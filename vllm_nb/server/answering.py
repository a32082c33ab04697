"""From a request to its answer, for every dialect: queue it, then answer in one piece or as a stream of events."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import Request
from fastapi.responses import Response

from vllm_nb.outputs import GenerationOutput, StreamItem, Timings, Usage
from vllm_nb.sampling import SamplingParams
from vllm_nb.server.host import EngineHost
from vllm_nb.server.openai_format import to_json, totals
from vllm_nb.server.streaming import (
    CLIENT_CLOSED_REQUEST,
    REQUEST_ID,
    ClientLeft,
    EventStream,
    ItemStream,
    batches,
    until_hangup,
)

if TYPE_CHECKING:
    from vllm_nb.api import Engine
    from vllm_nb.streams import AsyncEngineStream


class AnswerFormat(Protocol):
    """How an answer is written. A request may hold several prompts; they are numbered in order. end: what follows the
    last event of a stream."""

    end: bytes

    def first_chunks(self) -> list[dict[str, Any]]:
        """What is said before there is a token."""
        ...

    def chunks(self, prompt: int, items: Sequence[StreamItem]) -> list[dict[str, Any]]:
        """The chunks for the items of a step of the prompt with that number."""
        ...

    def last_chunks(self, chunks: list[dict[str, Any]], usage: Usage, timings: Timings) -> list[dict[str, Any]]:
        """`chunks`, the last of the answer, completed by the totals."""
        ...

    def collect(self, prompt: int, items: Sequence[StreamItem]) -> None:
        """Instead of `chunks`, where the answer is wanted in one piece."""
        ...

    def whole(self, outputs: Sequence[GenerationOutput], usage: Usage, timings: Timings) -> dict[str, Any]:
        """The answer in one piece."""
        ...

    def event(self, chunk: dict[str, Any]) -> bytes:
        """A chunk as a server-sent event."""
        ...

    def error_event(self, error: BaseException) -> bytes:
        """The last event of a stream that failed."""
        ...


async def submit(
    engine: "Engine", params: SamplingParams, conversations: Sequence[Any], **options: Any
) -> "list[AsyncEngineStream]":
    """Queue one request a conversation; all or none. options: fields of ChatOptions.

    Raises RequestError, QueueFullError, EngineDeadError."""
    return await engine.agenerate_streams(params, conversations, **options)


async def answer(
    host: EngineHost,
    request: Request,
    streams: Sequence[ItemStream],
    form: AnswerFormat,
    *,
    streamed: bool,
    request_id: str | None = None,
    during: AbstractContextManager[None] | None = None,
) -> Response:
    """The response, which lives as long as its client: when that leaves, the streams end in the engine.

    request_id: by which it can be aborted; None: the first stream's. during: entered for as long as it lives."""
    request_id = request_id or streams[0].request_id
    lifetime = _within(host.using(request_id, streams), during or nullcontext())
    if streamed:
        return EventStream(_events(form, streams), request_id, lifetime, error_event=form.error_event, end=form.end)
    with lifetime:
        try:
            body = await until_hangup(request.receive, _whole(form, streams))
        except ClientLeft:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(to_json(body), 200, {REQUEST_ID: request_id}, "application/json")


@contextmanager
def _within(outer: AbstractContextManager[None], inner: AbstractContextManager[None]) -> Iterator[None]:
    with outer, inner:
        yield


async def _whole(form: AnswerFormat, streams: Sequence[ItemStream]) -> dict[str, Any]:
    async for index, items in batches(streams):
        form.collect(index, items)
    outputs = [stream.output for stream in streams]
    return form.whole(outputs, *totals(outputs))


async def _events(form: AnswerFormat, streams: Sequence[ItemStream]) -> AsyncGenerator[bytes, None]:
    """One piece of bytes, to be written at once, for what a step brought."""
    if chunks := form.first_chunks():
        yield b"".join(map(form.event, chunks))
    running = len(streams)
    async for index, items in batches(streams):
        running -= any(item.usage is not None for item in items)
        chunks = form.chunks(index, items)
        if not running:
            chunks = form.last_chunks(chunks, *totals([stream.output for stream in streams]))
        if chunks:
            yield b"".join(map(form.event, chunks))
