"""MCP servers as real processes: found, asked, timed out, restarted; and what a configuration may say."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from vllm_nb.cli import main
from vllm_nb.errors import VllmNbError
from vllm_nb.messages import ToolCall
from vllm_nb.server.mcp_config import McpServerConfig, load_config
from vllm_nb.server.mcp_servers import MAX_OUTPUT, McpServers

TOOLS = ["add", "noon", "fail", "sleep", "nap", "die", "picture", "long"]
SOON = 60.0


@pytest.fixture
def stdio(mcp_clock):
    def config(name="clock", **fields):
        return McpServerConfig(name, sys.executable, (mcp_clock,), **fields)

    return config


@asynccontextmanager
async def running(*configs: McpServerConfig) -> AsyncIterator[McpServers]:
    servers = McpServers(configs)
    servers.start()
    try:
        async with asyncio.timeout(SOON):
            yield servers
    finally:
        await servers.stop()


def call(name, **arguments):
    return ToolCall("c1", name, json.dumps(arguments))


async def until_ready(servers):
    """The first server runs (again)."""
    while servers.servers[0].status != "ready":
        await asyncio.sleep(0.02)


def test_a_server_of_its_own_process(stdio):
    async def check():
        async with running(stdio(env={"PLACE": "Köln"})) as servers:
            tools = await servers.tools()
            assert list(tools) == TOOLS
            add = tools["add"][2]
            assert add.description == "The sum of two numbers."
            assert set(add.parameters["properties"]) == {"a", "b"}
            runs = [await servers.run(call("add", a=2, b=40)), await servers.run(call("noon"))]
            assert [(run.output, run.is_error, run.server) for run in runs] == [
                ("42", False, "clock"),
                ("12:00 Köln", False, "clock"),
            ]
            failed = await servers.run(call("fail"))
            assert failed.is_error
            assert "fail" in failed.output
            wrong = await servers.run(call("add", a="two"))
            assert wrong.is_error
            broken = await servers.run(ToolCall("c1", "add", '{"a": '))
            assert (broken.output, broken.is_error) == ("the arguments of add are not a JSON object", True)
            seen = (await servers.run(call("picture"))).output
            assert seen == "look\n[image, which is not shown]"
            cut = (await servers.run(call("long"))).output
            assert len(cut) < MAX_OUTPUT + 100
            assert cut.endswith("[cut off: 100,000 characters]")

    asyncio.run(check())


def test_one_that_dies_is_reported_and_started_again(stdio):
    async def check():
        async with running(stdio()) as servers:
            assert servers.state()[0]["status"] == "connecting"
            await servers.tools()
            lost = await servers.run(call("die"))
            assert lost.is_error
            assert "the tool die failed" in lost.output
            missing = await servers.run(call("noon"))
            assert missing.is_error
            assert "the MCP server clock is not running" in missing.output
            await until_ready(servers)
            assert servers.state()[0]["restarts"] == 1
            assert (await servers.run(call("noon"))).output == "12:00"

    asyncio.run(check())


def test_a_tool_that_is_gone_after_a_restart_is_an_error_of_its_call(mcp_clock, tmp_path):
    program = tmp_path / "clock.py"
    program.write_text(Path(mcp_clock).read_text())

    async def check():
        async with running(McpServerConfig("clock", sys.executable, (str(program),))) as servers:
            assert "noon" in await servers.tools()
            program.write_text(program.read_text().replace("def noon()", "def midnight()"))
            await servers.run(call("die"))
            await until_ready(servers)
            gone = await servers.run(call("noon"))
            assert (gone.output, gone.is_error) == (
                "no MCP server offers the tool noon any more; go on without it",
                True,
            )
            assert (await servers.run(call("midnight"))).output == "12:00"

    asyncio.run(check())


def test_a_tool_that_takes_too_long(stdio):
    async def check():
        async with running(stdio(timeout=0.3)) as servers:
            slow = await servers.run(call("sleep", seconds=30))
            assert (slow.output, slow.is_error) == ("the tool sleep did not answer within 0.3 seconds", True)

    asyncio.run(check())


def test_tools_of_one_name_get_their_servers_before_it(stdio):
    async def check():
        async with running(stdio("one", env={"PLACE": "1"}), stdio("two two", env={"PLACE": "2"})) as servers:
            names = list(await servers.tools())
            assert names == [f"one__{tool}" for tool in TOOLS] + [f"two_two__{tool}" for tool in TOOLS]
            assert (await servers.run(call("two_two__noon"))).output == "12:00 2"

    asyncio.run(check())


def test_one_that_cannot_be_started_does_not_hold_up_the_others(stdio):
    async def check():
        absent = McpServerConfig("absent", "/nonexistent/program")
        silent = McpServerConfig("silent", sys.executable, ("-c", "import time; time.sleep(60)"), connect_timeout=0.5)
        async with running(absent, silent, stdio()) as servers:
            assert list(await servers.tools()) == TOOLS
            states = {state["name"]: state for state in servers.state()}
            assert states["absent"]["status"] == "failed"
            assert "/nonexistent/program" in states["absent"]["error"]
            assert states["silent"]["error"] == "no answer within 0.5 seconds"
            assert states["clock"]["tools"] == TOOLS

    asyncio.run(check())


def test_streamable_http(mcp_clock):
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, mcp_clock, str(port)], stderr=subprocess.DEVNULL)

    async def check():
        config = McpServerConfig("web", url=f"http://127.0.0.1:{port}/mcp", headers={"X-Key": "1"})
        async with running(config) as servers:
            await until_ready(servers)  # it goes on trying until that process listens
            assert list(await servers.tools()) == TOOLS
            assert (await servers.run(call("add", a=1, b=2))).output == "3"

    try:
        asyncio.run(check())
    finally:
        process.terminate()
        process.wait()


# The configuration


def write(tmp_path, data):
    path = tmp_path / "mcp.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_a_configuration(tmp_path):
    servers = {
        "files": {"command": "npx", "args": ["-y", "server"], "env": {"KEY": "secret"}, "cwd": "work", "timeout": 5},
        "web": {"type": "http", "url": "https://example.org/mcp", "headers": {"Authorization": "Bearer secret"}},
        "off": {"command": "x", "disabled": True},
    }
    files, web = load_config(write(tmp_path, {"mcpServers": servers}))
    assert (files.command, files.args, files.env, files.cwd, files.timeout) == (
        "npx",
        ("-y", "server"),
        {"KEY": "secret"},
        "work",
        5.0,
    )
    assert (web.url, web.headers) == ("https://example.org/mcp", {"Authorization": "Bearer secret"})
    assert "secret" not in f"{files} {web}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "is not JSON"),
        ([], 'must be {"mcpServers"'),
        ({"servers": {}}, 'must be {"mcpServers"'),
        ({"mcpServers": {"a": 1}}, "a must be an object, not 1"),
        ({"mcpServers": {"a": {}}}, "a must have either command .* or url"),
        ({"mcpServers": {"a": {"command": "x", "url": "http://y"}}}, "either command"),
        ({"mcpServers": {"a": {"command": "x", "arg": []}}}, "unknown key 'arg'; known are args, command"),
        ({"mcpServers": {"a": {"command": "x", "args": "y"}}}, "args must be a list"),
        ({"mcpServers": {"a": {"command": 1}}}, "command must hold texts, not 1"),
        ({"mcpServers": {"a": {"command": "x", "env": {"K": 1}}}}, "env must be an object of texts"),
        ({"mcpServers": {"a": {"url": "file:///x"}}}, "url must begin with http"),
        ({"mcpServers": {"a": {"url": "http://x", "type": "sse"}}}, "type must be stdio for a command and http"),
        ({"mcpServers": {"a": {"command": "x", "timeout": 0}}}, "timeout must be seconds"),
    ],
)
def test_a_wrong_configuration(tmp_path, data, message):
    with pytest.raises(VllmNbError, match=message) as caught:
        load_config(write(tmp_path, data))
    assert "mcp.json" in str(caught.value)


def test_a_missing_configuration(tmp_path):
    with pytest.raises(VllmNbError, match=r"cannot read the MCP configuration .*: No such file"):
        load_config(tmp_path / "none.json")


def test_on_the_command_line_a_mistake_shows_before_a_model_is_loaded(tmp_path, capsys):
    assert main(["serve", "smollm2", "--port", "0", "--mcp-config", str(tmp_path / "none.json")]) == 1
    assert capsys.readouterr().err.startswith("error: cannot read the MCP configuration")
