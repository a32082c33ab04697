"""OpenAI's /v1/models: the one model there is."""

from typing import Any

from fastapi import APIRouter

from vllm_nb.server.host import EngineHost


def create_router(host: EngineHost) -> APIRouter:
    """The routes over the engine of `host`."""
    router = APIRouter(prefix="/v1/models")

    @router.get("")
    async def models() -> dict[str, Any]:
        """The model that is served, as a list."""
        return {"object": "list", "data": [_card(host)]}

    @router.get("/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The model of that name."""
        host.require_engine(name)
        return _card(host)

    return router


def _card(host: EngineHost) -> dict[str, Any]:
    engine = host.require_engine()
    card = {"id": engine.model_name, "object": "model", "created": int(host.started), "owned_by": "vllm_nb"}
    return card | {"root": engine.model_name, "parent": None, "max_model_len": engine.max_model_len}
