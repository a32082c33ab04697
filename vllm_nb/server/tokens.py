"""/tokenize and /detokenize: what the model sees of a text or of a conversation, and back; the fields are vLLM's."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from vllm_nb.errors import RequestError
from vllm_nb.messages import as_messages
from vllm_nb.server.host import EngineHost
from vllm_nb.server.openai_requests import MAX_MESSAGES
from vllm_nb.server.request_model import RequestModel

if TYPE_CHECKING:
    from vllm_nb.api import Engine

MAX_TOKENS = 1_000_000  # of a text to detokenise


class TokenizeRequest(RequestModel):
    """A `prompt`, or `messages` for the chat template. add_special_tokens: put before a prompt what the model wants at
    the start; what a template writes is complete."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = Field(None, max_length=MAX_MESSAGES)
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(RequestModel):
    """skip_special_tokens: leave out what is no text, such as <|im_end|>, instead of showing it by name."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(max_length=MAX_TOKENS)
    skip_special_tokens: bool = False


class DetokenizeResponse(BaseModel):
    prompt: str


def create_router(host: EngineHost) -> APIRouter:
    """The routes over the engine of `host`."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeResponse:
        """The token ids of a text or of a conversation."""
        engine = host.require_engine(body.model)
        ids = await asyncio.to_thread(_tokenize, engine, body)
        texts = [*map(engine.tokenizer.token_text, ids)] if body.return_token_strs else None
        return TokenizeResponse(count=len(ids), max_model_len=engine.max_model_len, tokens=ids, token_strs=texts)

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> DetokenizeResponse:
        """The text of token ids."""
        tokenizer = host.require_engine(body.model).tokenizer
        bad = next((token for token in body.tokens if token >= tokenizer.vocab_size), None)
        if bad is not None:
            raise RequestError(f"tokens must be ids below {tokenizer.vocab_size}, the vocabulary's size, not {bad}")
        text = await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special=body.skip_special_tokens)
        return DetokenizeResponse(prompt=text)

    return router


def _tokenize(engine: "Engine", body: TokenizeRequest) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("a text is tokenised from either prompt or messages: give one of them")
    if body.messages is None:
        return engine.tokenizer.encode(body.prompt or "", add_special=body.add_special_tokens, parse_special=True)
    kwargs = {**(body.chat_template_kwargs or {}), **({"tools": body.tools} if body.tools else {})}
    return engine.chat_template.render(
        as_messages(body.messages), add_generation_prompt=body.add_generation_prompt, **kwargs
    )
