"""Our own routes: how the engine is, ending a request, ending the engine."""

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from vllm_nb.server.host import EngineHost
from vllm_nb.server.security import Policy

if TYPE_CHECKING:  # it brings torch
    from vllm_nb.api import Engine


class AbortRequest(BaseModel):
    request_id: str = Field(max_length=256)


class IdleTimeout(BaseModel):
    seconds: float | None = Field(ge=0, allow_inf_nan=False)


class Health(BaseModel):
    """How the server is. Who has no key is told the status alone."""

    status: Literal["loading", "ready", "failed"]


def create_router(host: EngineHost, policy: Policy, identity: dict[str, Any], stop: Callable[[], None]) -> APIRouter:
    """identity: what /health adds to tell this server from others. stop: begins the shutdown."""
    router = APIRouter()

    @router.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health(request: Request) -> JSONResponse:
        """Whether requests are served: 200 if so, 503 while the model loads and after a failure."""
        body = host.health()
        status = 200 if body["status"] == "ready" else 503
        if not policy.knows(request.headers):
            return JSONResponse({"status": body["status"]}, status)
        host.failure_told = host.failure_told or body["status"] == "failed"
        return JSONResponse(identity | {"pid": os.getpid()} | body, status)

    @router.get("/inspect/state")
    async def state(complete: bool = False) -> Response:
        """Counts of queues and KV blocks, and whether the books add up; `complete`: the whole state, and the number of
        the event that follows it."""
        engine = host.require_engine()
        return await asyncio.to_thread(_state, engine, host.in_flight, complete)

    @router.post("/inspect/abort")
    async def abort(body: AbortRequest) -> dict[str, bool]:
        """End a request; its answer so far is completed."""
        return {"aborted": host.abort(body.request_id)}

    @router.post("/inspect/idle_timeout")
    async def idle_timeout(body: IdleTimeout) -> dict[str, float | None]:
        """How long the server stays without requests; null: for ever."""
        host.idle_timeout = body.seconds
        return {"seconds": host.idle_timeout}

    @router.post("/inspect/disown")
    async def disown() -> dict[str, None]:
        """Stay when the process ends that this one was to end with."""
        host.owner = None
        return {"owner_pid": None}

    @router.post("/inspect/shutdown")
    async def shutdown() -> dict[str, str]:
        """End what runs, and the server."""
        host.abort_all()
        stop()
        return {"status": "stopping"}

    return router


def _state(engine: "Engine", requests: int, complete: bool) -> Response:
    """With 100,000 stored blocks the complete state is 13 MB, so it is encoded here, off the event loop."""
    body = engine.stats() | {"requests": requests, "integrity": _integrity(engine)}
    if complete:
        snapshot = engine.snapshot()
        body |= {"snapshot": snapshot.to_dict(), "offset": snapshot.offset}
    return JSONResponse(body)


def _integrity(engine: "Engine") -> str:
    """ "ok", or what does not add up."""
    try:
        engine.check_integrity()
    except RuntimeError as error:
        return str(error)
    return "ok"
