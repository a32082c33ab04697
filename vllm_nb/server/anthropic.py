"""Anthropic's routes: /v1/messages and /v1/messages/count_tokens."""

import asyncio
import uuid
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from vllm_nb.server.answering import answer, submit
from vllm_nb.server.anthropic_format import MessageFormat
from vllm_nb.server.anthropic_requests import CountTokensRequest, MessagesRequest
from vllm_nb.server.host import EngineHost

if TYPE_CHECKING:
    from vllm_nb.api import Engine

REQUEST_ID = "request-id"  # where Anthropic's clients look for it


class TokenCount(BaseModel):
    input_tokens: int


def create_router(host: EngineHost) -> APIRouter:
    """The routes over the engine of `host`."""
    router = APIRouter(prefix="/v1/messages")

    @router.post("")
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """Answer a conversation."""
        engine = host.require_engine(body.model)
        streams = await submit(engine, body.sampling_params(), [body.conversation()], **body.options())
        form = MessageFormat(
            id=f"msg_{uuid.uuid4().hex[:24]}",
            model=body.model or engine.model_name,
            prompt_tokens=streams[0].output.usage.prompt_tokens,
        )
        response = await answer(host, request, streams, form, streamed=body.stream)
        response.headers[REQUEST_ID] = streams[0].request_id
        return response

    @router.post("/count_tokens")
    async def count_tokens(body: CountTokensRequest) -> TokenCount:
        """The tokens of the prompt that a conversation makes."""
        engine = host.require_engine(body.model)
        return TokenCount(input_tokens=len(await asyncio.to_thread(_encode, engine, body)))

    return router


def _encode(engine: "Engine", body: CountTokensRequest) -> list[int]:
    from vllm_nb.chat_options import ChatOptions

    return engine.encode([*body.conversation()], ChatOptions(**body.options()))
