"""Our own routes: how the engine is, ending a request, ending the engine."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from vllm_nb.server.host import EngineHost


class AbortRequest(BaseModel):
    request_id: str = Field(max_length=256)


class IdleTimeout(BaseModel):
    seconds: float | None = Field(ge=0, allow_inf_nan=False)


def create_router(host: EngineHost, identity: dict[str, Any], stop: Callable[[], None]) -> APIRouter:
    """identity: what /health adds to tell this server from others. stop: begins the shutdown."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> JSONResponse:
        body = host.health()
        host.failure_told = host.failure_told or body["status"] == "failed"
        return JSONResponse(identity | {"pid": os.getpid()} | body, 503 if body["status"] == "failed" else 200)

    @router.get("/inspect/state")
    async def state() -> dict[str, Any]:
        engine = host.require_engine()
        stats = await asyncio.to_thread(engine.stats)
        return stats | {"requests": host.in_flight, "integrity": await asyncio.to_thread(_integrity, engine)}

    @router.post("/inspect/abort")
    async def abort(body: AbortRequest) -> dict[str, bool]:
        return {"aborted": host.abort(body.request_id)}

    @router.post("/inspect/idle_timeout")
    async def idle_timeout(body: IdleTimeout) -> dict[str, float | None]:
        host.idle_timeout = body.seconds
        return {"seconds": host.idle_timeout}

    @router.post("/inspect/shutdown")
    async def shutdown() -> dict[str, str]:
        host.abort_all()
        stop()
        return {"status": "stopping"}

    return router


def _integrity(engine: Any) -> str:
    """ "ok", or what does not add up."""
    try:
        engine.check_integrity()
    except RuntimeError as error:
        return str(error)
    return "ok"
