"""OpenAI's /v1/chat/completions."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from vllm_nb.messages import as_messages
from vllm_nb.server.answering import answer, submit
from vllm_nb.server.host import EngineHost
from vllm_nb.server.openai_format import ChatFormat
from vllm_nb.server.openai_requests import ChatRequest


def create_router(host: EngineHost) -> APIRouter:
    """The route over the engine of `host`."""
    router = APIRouter(prefix="/v1")

    @router.post("/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        engine = host.require_engine(body.model)
        streams = await submit(engine, body.sampling_params(), [as_messages(body.messages)], **body.options())
        form = ChatFormat(
            id=streams[0].request_id,
            model=engine.model_name,
            tokenizer=engine.tokenizer,
            n=body.n or 1,
            include_usage=body.include_usage,
            with_ids=body.return_token_ids,
            prompt_token_ids=streams[0].output.prompt_token_ids,
        )
        return await answer(host, request, streams, form, streamed=bool(body.stream))

    return router
