"""Live servers: a real engine behind a real socket, asked by real clients."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest
from openai import OpenAI

from vllm_nb.api import Engine
from vllm_nb.config import EngineConfig
from vllm_nb.server.app import bind, run
from vllm_nb.server.host import EngineHost
from vllm_nb.server.security import Policy

KEY = "test-key"
SOON = 30.0  # seconds within which an awaited condition must hold


@dataclass
class Live:
    """A server on a thread of the test process."""

    url: str
    host: EngineHost
    thread: threading.Thread

    def client(self, **options) -> httpx.Client:
        headers = {"Authorization": f"Bearer {KEY}"}
        # Without certificates, which take 0.1 s to read and are of no use on plain HTTP.
        return httpx.Client(base_url=self.url, headers=headers, timeout=SOON, verify=False, trust_env=False, **options)

    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=60)

    def state(self) -> dict:
        with self.client() as client:
            response = client.get("/inspect/state")
            assert response.status_code == 200, response.text
            return response.json()

    def eventually(self, condition: Callable[[dict], bool]) -> dict:
        """The first state that meets the condition."""
        deadline = time.monotonic() + SOON
        while not condition(state := self.state()):
            assert time.monotonic() < deadline, state
            time.sleep(0.01)
        return state

    def eventually_empty(self) -> dict:
        """Waits until no request runs or waits; every block must be free then, and the books in order."""
        state = self.eventually(lambda s: s["running"] == s["waiting"] == s["requests"] == 0)
        assert state["kv_blocks"]["used"] == 0
        assert state["kv_blocks"]["free"] == state["kv_blocks"]["total"]
        assert state["integrity"] == "ok"
        return state


@contextmanager
def serving(host: EngineHost, policy: Policy | None = None) -> Iterator[Live]:
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    policy = policy or Policy.for_address("127.0.0.1", KEY)
    thread = threading.Thread(target=run, args=(host, listener, policy), kwargs={"identity": {"id": "test"}})
    thread.start()
    live = Live(url, host, thread)
    try:
        yield live
    finally:
        if thread.is_alive():
            with live.client() as client:
                client.post("/inspect/shutdown", json={})
        thread.join(SOON)
        assert not thread.is_alive()


@pytest.fixture(scope="session", name="serving")
def serving_fixture():
    return serving


@pytest.fixture(scope="session")
def smollm2(smollm2_path) -> Iterator[Live]:
    with Engine(smollm2_path) as engine, serving(EngineHost.ready(engine)) as live:
        yield live


@pytest.fixture(scope="module")
def tiny(tiny_model_path) -> Iterator[Live]:
    """Two requests at a time, the third must wait."""
    config = EngineConfig(max_num_seqs=2, num_kv_blocks=512, max_queued_requests=4, dtype="float32")
    with Engine(tiny_model_path, config) as engine, serving(EngineHost.ready(engine)) as live:
        yield live


@pytest.fixture(scope="module")
def client(smollm2: Live) -> Iterator[OpenAI]:
    """OpenAI's client of the real model."""
    with smollm2.openai() as client:
        yield client


@pytest.fixture(scope="module")
def tiny_client(tiny: Live) -> Iterator[OpenAI]:
    with tiny.openai() as client:
        yield client


@pytest.fixture(scope="session")
def mcp_clock(tmp_path_factory) -> str:
    """A program that is an MCP server: over standard input and output, or, with a port, over streamable HTTP."""
    program = tmp_path_factory.mktemp("mcp") / "clock.py"
    program.write_text(_MCP_CLOCK)
    return str(program)


_MCP_CLOCK = '''
import asyncio
import os
import sys
import time

from mcp.server import MCPServer
from mcp.types import ImageContent, TextContent

server = MCPServer("clock")


@server.tool()
def add(a: int, b: int) -> str:
    """The sum of two numbers."""
    return str(a + b)


@server.tool()
def noon() -> str:
    """When noon is."""
    return f"12:00 {os.environ.get('PLACE', '')}".strip()


@server.tool()
def fail() -> str:
    """Always fails."""
    raise ValueError("out of order")


@server.tool()
def sleep(seconds: float) -> str:
    """Waits."""
    time.sleep(seconds)
    return "rested"


@server.tool()
async def nap() -> str:
    """Waits for long."""
    await asyncio.sleep(60)
    return "rested"


@server.tool()
def die() -> str:
    """Ends the server."""
    os._exit(3)


@server.tool()
def picture() -> list[TextContent | ImageContent]:
    """A text and an image."""
    return [TextContent(type="text", text="look"), ImageContent(type="image", data="AAAA", mimeType="image/png")]


@server.tool()
def long() -> str:
    """More than a model should read."""
    return "x" * 100_000


for tool in server._tool_manager.list_tools():  # else a small model goes on inventing arguments
    tool.parameters["additionalProperties"] = False


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
'''
