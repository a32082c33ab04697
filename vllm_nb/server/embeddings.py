"""OpenAI's /v1/embeddings."""

import asyncio
import base64
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from vllm_nb.errors import RequestError
from vllm_nb.server.host import EngineHost
from vllm_nb.server.openai_format import to_json
from vllm_nb.server.streaming import CLIENT_CLOSED_REQUEST, REQUEST_ID, ClientLeft, until_hangup

if TYPE_CHECKING:
    import numpy as np

    from vllm_nb.api import Prompt
    from vllm_nb.embeddings import EmbeddingOutput

MAX_INPUTS = 2048  # OpenAI's own

TokenIds = list[int]


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings. `pooling` is ours."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = None
    input: str | TokenIds | list[str] | list[TokenIds]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    pooling: Literal["mean", "last"] = "mean"

    def prompts(self) -> "list[str | Prompt]":
        """One entry an input."""
        from vllm_nb.api import Prompt

        if isinstance(self.input, str):
            return [self.input]
        inputs = [entry for entry in self.input if not isinstance(entry, int)]
        if self.input and not inputs:
            return [Prompt(token_ids=[entry for entry in self.input if isinstance(entry, int)])]
        if len(inputs) > MAX_INPUTS:
            raise RequestError(f"input must hold at most {MAX_INPUTS:,} texts, not {len(inputs):,}")
        return [entry if isinstance(entry, str) else Prompt(token_ids=entry) for entry in inputs]


def create_router(host: EngineHost) -> APIRouter:
    """The route over the engine of `host`."""
    router = APIRouter(prefix="/v1")

    @router.post("/embeddings")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        engine = host.require_engine(body.model)
        work = await asyncio.to_thread(lambda: engine.embedding_request(body.prompts(), body.pooling, body.dimensions))
        with host.using(work.request_id, [work]):
            try:
                output = await until_hangup(request.receive, work.arun())
            except ClientLeft:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
        answer = await asyncio.to_thread(_answer, engine.model_name, output, body.encoding_format)
        return Response(answer, 200, {REQUEST_ID: work.request_id}, "application/json")

    return router


def _answer(model: str, output: "EmbeddingOutput", encoding: str) -> str:
    """OpenAI's shape, written vector by vector: a thread that encodes it all at once would let no other run."""
    write = _base64 if encoding == "base64" else _numbers
    entries = [
        f'{{"object":"embedding","index":{i},"embedding":{write(vector)}}}' for i, vector in enumerate(output.vectors)
    ]
    usage = {"prompt_tokens": output.usage.prompt_tokens, "total_tokens": output.usage.total_tokens}
    rest: dict[str, Any] = {"model": model, "usage": usage}
    return f'{{"object":"list","data":[{",".join(entries)}],{to_json(rest)[1:]}'


def _numbers(vector: "np.ndarray") -> str:
    return to_json(vector.tolist())


def _base64(vector: "np.ndarray") -> str:
    """Little-endian float32, as OpenAI's own."""
    return f'"{base64.b64encode(vector.astype("<f4").tobytes()).decode()}"'
