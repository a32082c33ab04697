"""OpenAI's /v1/chat/completions."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from vllm_nb.messages import as_messages
from vllm_nb.server.answering import answer
from vllm_nb.server.host import EngineHost
from vllm_nb.server.openai_format import ChatFormat
from vllm_nb.server.openai_requests import ChatRequest
from vllm_nb.server.tool_loop import HEADER, converse


def create_router(host: EngineHost) -> APIRouter:
    """The route over the engine of `host`."""
    router = APIRouter(prefix="/v1")

    @router.post("/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        engine = host.require_engine(body.model)
        mcp = body.mcp or request.headers.get(HEADER)
        messages = as_messages(body.messages)
        stream = await converse(engine, host.mcp, mcp, body.sampling_params(), messages, body.options())
        form = ChatFormat(
            id=stream.request_id,
            model=engine.model_name,
            tokenizer=engine.tokenizer,
            n=body.n or 1,
            include_usage=body.include_usage,
            with_ids=body.return_token_ids,
            prompt_token_ids=stream.output.prompt_token_ids,
        )
        return await answer(host, request, [stream], form, streamed=bool(body.stream))

    return router
