"""OpenAI's routes: /v1/models, /v1/chat/completions, /v1/completions."""

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from vllm_nb.messages import as_messages
from vllm_nb.server.host import EngineHost
from vllm_nb.server.openai_format import ChatFormat, Format, TextFormat, event, to_json, totals
from vllm_nb.server.openai_requests import ChatRequest, CompletionRequest, GenerateRequest
from vllm_nb.server.streaming import REQUEST_ID, ClientLeft, EventStream, batches, until_hangup

if TYPE_CHECKING:
    from vllm_nb.api import Engine
    from vllm_nb.streams import AsyncEngineStream

_CLIENT_CLOSED_REQUEST = 499  # nginx's; nobody reads it


def create_router(host: EngineHost) -> APIRouter:
    """The routes over the engine of `host`."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_card(host)]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        host.require_engine(name)
        return _model_card(host)

    @router.post("/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        engine = host.require_engine(body.model)
        streams = await _submit(engine, body, [as_messages(body.messages)])
        return await _answer(host, request, body, streams, ChatFormat)

    @router.post("/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        from vllm_nb.api import Prompt

        engine = host.require_engine(body.model)
        prompts = [Prompt(text=p) if isinstance(p, str) else Prompt(token_ids=p) for p in body.prompts()]
        streams = await _submit(engine, body, prompts)
        return await _answer(host, request, body, streams, TextFormat)

    return router


def _model_card(host: EngineHost) -> dict[str, Any]:
    engine = host.require_engine()
    card = {"id": engine.model_name, "object": "model", "created": int(host.started), "owned_by": "vllm_nb"}
    return card | {"max_model_len": engine.max_model_len}


async def _submit(engine: "Engine", body: GenerateRequest, conversations: list[Any]) -> "list[AsyncEngineStream]":
    """Queue one request a conversation; all or none."""
    params = body.sampling_params()
    streams: list[AsyncEngineStream] = []
    try:
        for conversation in conversations:
            streams.append(await engine.agenerate_stream(params, conversation))  # noqa: PERF401  # kept on an error
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    return streams


async def _answer(
    host: EngineHost,
    request: Request,
    body: GenerateRequest,
    streams: "list[AsyncEngineStream]",
    format_type: type[Format],
) -> Response:
    engine = host.require_engine()
    request_id = streams[0].request_id
    form = format_type(
        request_id, engine.model_name, engine.tokenizer, body.n or 1, body.include_usage, body.return_token_ids
    )
    lifetime = host.using(request_id, streams)
    if body.stream:
        return EventStream(_events(form, streams), request_id, lifetime)
    with lifetime:
        try:
            answer = await until_hangup(request.receive, _whole(form, streams))
        except ClientLeft:
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
    return Response(to_json(answer), 200, {REQUEST_ID: request_id}, "application/json")


async def _whole(form: Format, streams: "list[AsyncEngineStream]") -> dict[str, Any]:
    async for _ in batches(streams):
        continue
    outputs = [stream.output for stream in streams]
    return form.whole(outputs, *totals(outputs))


async def _events(form: Format, streams: "list[AsyncEngineStream]") -> AsyncGenerator[bytes, None]:
    """One piece of bytes, to be written at once, for what a step brought."""
    running = len(streams)
    async for index, items in batches(streams):
        running -= any(item.usage is not None for item in items)
        chunks = form.chunks(index, items)
        if not running:
            chunks = form.last_chunks(chunks, *totals([stream.output for stream in streams]))
        if chunks:
            yield b"".join(map(event, chunks))
