"""Our routes for watching the engine at work: its events, and the step debugger."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from vllm_nb.events import HEARTBEAT, POLL, dump
from vllm_nb.server.host import EngineHost
from vllm_nb.server.streaming import EventStream

if TYPE_CHECKING:  # it brings torch
    from vllm_nb.event_reader import EventReader


class StepRequest(BaseModel):
    count: int = Field(1, ge=1, le=1_000_000)


def create_router(host: EngineHost, stopping: Callable[[], bool]) -> APIRouter:
    """stopping: whether the server is to end, which ends whoever only watches."""
    router = APIRouter()

    @router.get("/inspect/events")
    async def events(offset: Annotated[int | None, Query(ge=0)] = None, follow: bool = True) -> Response:
        """What happens in the engine, as server-sent events; from event number `offset` on, or from now."""
        reader = host.require_engine().event_reader(offset)
        return EventStream(_batches(reader, follow, stopping), None, nullcontext())

    @router.post("/inspect/pause")
    async def pause() -> dict[str, Any]:
        """Stand still between two steps."""
        engine = host.require_engine()
        await asyncio.to_thread(engine.pause)
        return {"paused": engine.paused}

    @router.post("/inspect/step")
    async def step(body: StepRequest) -> dict[str, Any]:
        """Make `count` steps and stand still."""
        engine = host.require_engine()
        made = await asyncio.to_thread(engine.step, body.count)
        return {"made": made, "paused": engine.paused}

    @router.post("/inspect/resume")
    async def resume() -> dict[str, Any]:
        """Run on."""
        engine = host.require_engine()
        await asyncio.to_thread(engine.resume)
        return {"paused": engine.paused}

    return router


async def _batches(reader: "EventReader", follow: bool, stopping: Callable[[], bool]) -> AsyncGenerator[bytes, None]:
    """A batch a piece, its id the number of the event that follows. It is read and encoded in a thread, where it holds
    up neither the engine nor other answers."""
    loop = asyncio.get_running_loop()
    while (follow and not stopping()) or reader.has_news:
        deadline = loop.time() + HEARTBEAT
        while not reader.has_news and loop.time() < deadline and not stopping():
            await asyncio.sleep(POLL)
        yield await asyncio.to_thread(_encoded, reader)
        if follow:
            await asyncio.sleep(POLL)


def _encoded(reader: "EventReader") -> bytes:
    batch = reader.read()
    return f"id: {batch.offset + len(batch.events)}\ndata: {dump(batch)}\n\n".encode()
