"""Anthropic's routes: /v1/messages and /v1/messages/count_tokens."""

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from vllm_nb.chat_options import ChatOptions
from vllm_nb.server.answering import answer
from vllm_nb.server.anthropic_format import MessageFormat
from vllm_nb.server.anthropic_requests import CountTokensRequest, MessagesRequest
from vllm_nb.server.host import EngineHost
from vllm_nb.server.tool_loop import HEADER, converse, offer

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
        mcp = body.mcp or request.headers.get(HEADER)
        stream = await converse(engine, host.mcp, mcp, body.sampling_params(), body.conversation(), body.options())
        form = MessageFormat(
            id=f"msg_{uuid.uuid4().hex[:24]}",
            model=body.model or engine.model_name,
            prompt_tokens=len(stream.output.prompt_token_ids),
        )
        response = await answer(host, request, [stream], form, streamed=body.stream)
        response.headers[REQUEST_ID] = stream.request_id
        return response

    @router.post("/count_tokens")
    async def count_tokens(body: CountTokensRequest, request: Request) -> TokenCount:
        """The tokens of the prompt that a conversation makes."""
        engine = host.require_engine(body.model)
        options, _ = await offer(host.mcp, body.mcp or request.headers.get(HEADER), body.options())
        return TokenCount(input_tokens=len(await asyncio.to_thread(_encode, engine, body, options)))

    return router


def _encode(engine: "Engine", body: CountTokensRequest, options: dict[str, Any]) -> list[int]:
    return engine.encode([*body.conversation()], ChatOptions(**options))
