"""Our routes for what an engine costs, its memory and how fast this machine reads it, and for what it samples with."""

import asyncio
from typing import Any

from fastapi import APIRouter

from vllm_nb.server.host import EngineHost


def create_router(host: EngineHost) -> APIRouter:
    router = APIRouter()

    @router.get("/inspect/memory")
    async def memory() -> dict[str, Any]:
        """Bytes of weights and KV cache, and what there is."""
        return await asyncio.to_thread(host.require_engine().memory)

    @router.get("/inspect/machine")
    async def machine() -> dict[str, Any]:
        """How fast this machine reads memory."""
        engine = host.require_engine()
        return {"read_bytes_per_second": await asyncio.to_thread(lambda: engine.read_rate)}

    @router.get("/inspect/sampling")
    async def sampling() -> dict[str, float]:
        return host.require_engine().default_params.distribution()

    return router
