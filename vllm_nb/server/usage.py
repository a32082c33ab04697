"""/v1/usage: what this server has answered since it began, and how full its cache is."""

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import APIRouter
from pydantic import BaseModel

from vllm_nb.server.host import EngineHost

if TYPE_CHECKING:
    from vllm_nb.outputs import GenerationOutput


@dataclass
class Totals:
    """Counts over all finished prompts."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def record(self, output: "GenerationOutput") -> None:
        self.requests += 1
        self.prompt_tokens += output.usage.prompt_tokens
        self.completion_tokens += sum(len(choice.token_ids) for choice in output.choices)
        self.cached_tokens += output.usage.cached_tokens


class UsageResponse(BaseModel):
    """Tokens, unless a name says otherwise. session_status: "running" while requests are answered, else "idle"."""

    requests: int
    requests_running: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    token_used: int
    max_model_len: int
    used_kvcache_tokens: int
    total_kv_cache_tokens: int
    session_status: str
    uptime_seconds: float


def create_router(host: EngineHost) -> APIRouter:
    """The route over the engine of `host`."""
    router = APIRouter()
    totals = Totals()
    host.on_finished.append(totals.record)

    @router.get("/v1/usage")
    async def usage() -> UsageResponse:
        """Counts since the server began."""
        engine = host.require_engine()
        blocks = (await asyncio.to_thread(engine.stats))["kv_blocks"]
        return UsageResponse(
            requests=totals.requests,
            requests_running=host.in_flight,
            prompt_tokens=totals.prompt_tokens,
            completion_tokens=totals.completion_tokens,
            cached_tokens=totals.cached_tokens,
            token_used=totals.prompt_tokens + totals.completion_tokens,
            max_model_len=engine.max_model_len,
            used_kvcache_tokens=blocks["used"] * blocks["block_size"],
            total_kv_cache_tokens=blocks["total"] * blocks["block_size"],
            session_status="running" if host.in_flight else "idle",
            uptime_seconds=round(time.time() - host.started, 3),
        )

    return router
