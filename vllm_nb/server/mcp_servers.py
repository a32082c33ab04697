"""Connections to MCP servers: each on a task of its own, which starts it again when it dies."""

import asyncio
import json
import logging
import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_nb.chat_options import MAX_TOOL_NAME, Tool
from vllm_nb.errors import RequestError
from vllm_nb.messages import ToolCall
from vllm_nb.outputs import ToolRun
from vllm_nb.server.mcp_config import McpServerConfig, load_config

if TYPE_CHECKING:
    import mcp

logger = logging.getLogger(__name__)

MAX_TOOLS = 64  # of all servers together, so that requests have room for their own
MAX_OUTPUT = 32 * 1024  # characters of a result that the model gets to see
_MAX_PAGES = 20
_BACKOFF = (0.5, 2.0, 5.0, 15.0, 60.0)  # seconds before the attempts to connect again


class McpServer:
    """One server. status: connecting, ready, failed (and why, in `error`); it goes on trying."""

    def __init__(self, config: McpServerConfig):
        self.config = config
        self.status = "connecting"
        self.error: str | None = None
        self.tools: list[Any] = []  # mcp.Tool
        self.settled = asyncio.Event()  # the first attempt has come to an end
        self.restarts = 0
        self._client: mcp.Client | None = None
        self._broken = asyncio.Event()

    async def run(self) -> None:
        """Connect, and again whenever the connection breaks, until cancelled."""
        failures = 0
        while True:
            try:
                async with AsyncExitStack() as stack:
                    await self._connect(stack)
                    failures = 0
                    await self._broken.wait()
            except Exception as error:
                self.error = _reason(error, self.config.connect_timeout)
            self.status, self._client = "failed", None
            self.settled.set()
            logger.warning("MCP server %s: %s; trying again", self.config.name, self.error)
            await asyncio.sleep(_BACKOFF[min(failures, len(_BACKOFF) - 1)])
            failures += 1
            self.restarts += 1

    async def _connect(self, stack: AsyncExitStack) -> None:
        import mcp

        self._broken.clear()
        async with asyncio.timeout(self.config.connect_timeout):
            transport = await _transport(self.config, stack)
            client = await stack.enter_async_context(mcp.Client(transport, read_timeout_seconds=self.config.timeout))
            self.tools = await _list_tools(client)
        self._client, self.status, self.error = client, "ready", None
        self.settled.set()
        logger.info("MCP server %s is ready with %d tools", self.config.name, len(self.tools))

    async def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, bool]:
        """(the result's text, whether it is an error). Failures are results too: the model is told."""
        from mcp import MCPError
        from mcp.types import CONNECTION_CLOSED

        client = self._client
        if client is None:
            return f"the MCP server {self.config.name} is not running: {self.error}", True
        try:
            async with asyncio.timeout(self.config.timeout):
                result = await client.call_tool(name, arguments)
        except TimeoutError:
            return f"the tool {name} did not answer within {self.config.timeout:g} seconds", True
        except MCPError as error:
            if error.code == CONNECTION_CLOSED:
                self._lost("the connection is closed")
            return f"the tool {name} failed: {error}", True
        except Exception as error:  # whatever the transport raises when the server has gone
            self._lost(_reason(error, self.config.timeout))
            return f"the tool {name} failed: {self.error}", True
        return _text(result), bool(result.is_error)

    def _lost(self, why: str) -> None:
        self.error, self._client, self.status = why, None, "failed"
        self._broken.set()


class McpServers:
    """All servers of a configuration, and their tools under names that are unique."""

    def __init__(self, configs: Sequence[McpServerConfig]):
        self._configs = configs
        self.servers: list[McpServer] = []
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    def from_file(cls, path: Path | str | None) -> "McpServers | None":
        """Those of a configuration file; None where there is none. Raises VllmNbError."""
        return None if path is None else cls(load_config(path))

    def start(self) -> None:
        """Begin to connect, in the running event loop."""
        self.servers = [McpServer(config) for config in self._configs]
        self._tasks = [asyncio.create_task(server.run(), name=f"mcp-{server.config.name}") for server in self.servers]

    async def stop(self) -> None:
        """End all connections, and the processes behind them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def tools(self) -> "dict[str, tuple[McpServer, str, Tool]]":
        """By the name that the model sees: the server, the tool's name there, and the tool. Waits for servers that are
        connecting for the first time."""
        for server in self.servers:
            await server.settled.wait()
        return self._offered()

    def _offered(self) -> "dict[str, tuple[McpServer, str, Tool]]":
        """`tools` as they are known now. Where two servers have a tool of one name, it is SERVER__TOOL."""
        offered = [(server, tool) for server in self.servers for tool in server.tools]
        names = [tool.name for _, tool in offered]
        found: dict[str, tuple[McpServer, str, Tool]] = {}
        for server, tool in offered[:MAX_TOOLS]:
            name = tool.name if names.count(tool.name) == 1 else f"{server.config.name}__{tool.name}"
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:MAX_TOOL_NAME]
            with suppress(RequestError):  # a schema beyond our limits: `state` says which tools there are
                found[name] = server, tool.name, Tool(name, (tool.description or "")[:MAX_OUTPUT], tool.input_schema)
        return found

    async def run(self, call: ToolCall) -> ToolRun:
        """Execute a call of one of `tools`. One that is gone since a restart is an error of server ""."""
        found = (await self.tools()).get(call.name)
        if found is None:
            return ToolRun(call, "", f"no MCP server offers the tool {call.name} any more; go on without it", True)
        server, name, _ = found
        try:
            arguments = json.loads(call.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            return ToolRun(call, server.config.name, f"the arguments of {call.name} are not a JSON object", True)
        return ToolRun(call, server.config.name, *await server.call(name, arguments))

    def state(self) -> list[dict[str, Any]]:
        """For people: each server, how it is, and its tools by the names that the model sees."""
        tools = self._offered()
        return [
            {
                "name": server.config.name,
                "status": server.status,
                "error": server.error,
                "restarts": server.restarts,
                "tools": [name for name, (owner, _, _) in tools.items() if owner is server],
            }
            for server in self.servers
        ]


async def _transport(config: McpServerConfig, stack: AsyncExitStack) -> "AbstractAsyncContextManager[Any]":
    import os

    import httpx2
    import mcp
    from mcp.client.streamable_http import streamable_http_client

    if config.url is not None:
        limits = httpx2.Timeout(30.0, read=300.0)  # as the package's own: a stream may be silent for long
        http = await stack.enter_async_context(httpx2.AsyncClient(headers=dict(config.headers), timeout=limits))
        return streamable_http_client(config.url, http_client=http)
    assert config.command is not None
    parameters = mcp.StdioServerParameters(
        command=config.command, args=list(config.args), env=dict(config.env), cwd=config.cwd
    )
    quiet = stack.enter_context(open(os.devnull, "w"))  # noqa: SIM115  # closed by the stack
    return mcp.stdio_client(parameters, errlog=quiet)


async def _list_tools(client: "mcp.Client") -> list[Any]:
    tools: list[Any] = []
    cursor: str | None = None
    for _ in range(_MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None or len(tools) >= MAX_TOOLS:
            break
    return tools[:MAX_TOOLS]


def _text(result: Any) -> str:
    """What the model sees of a result: its texts, or its structure as JSON."""
    parts = [part.text if part.type == "text" else f"[{part.type}, which is not shown]" for part in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    text = "\n".join(parts)
    return text if len(text) <= MAX_OUTPUT else f"{text[:MAX_OUTPUT]}\n[cut off: {len(text):,} characters]"


def _reason(error: BaseException, timeout: float) -> str:
    """The first error in groups of groups. timeout: seconds, of what may have run out of time."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} seconds"
    return f"{type(error).__name__}: {error}"
