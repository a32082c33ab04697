"""Our route for MCP: which servers there are, how they are, and the tools they offer."""

from fastapi import APIRouter
from pydantic import BaseModel

from vllm_nb.server.host import EngineHost


class McpServerState(BaseModel):
    """status: connecting, ready, or failed, and then why; restarts: how often it was tried again. tools: by the names
    that the model sees."""

    name: str
    status: str
    error: str | None
    restarts: int
    tools: list[str]


def create_router(host: EngineHost) -> APIRouter:
    """The route over the MCP servers of `host`."""
    router = APIRouter()

    @router.get("/inspect/mcp")
    async def servers() -> list[McpServerState]:
        """The MCP servers of --mcp-config; none without it."""
        states = [] if host.mcp is None else host.mcp.state()
        return [McpServerState(**state) for state in states]

    return router
