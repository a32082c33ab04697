"""The tools of MCP servers in requests of every dialect: shown to the model, and executed where the client asks."""

import sys

import anthropic
import openai
import pytest

from vllm_nb.api import Engine
from vllm_nb.config import EngineConfig
from vllm_nb.server.host import EngineHost
from vllm_nb.server.mcp_config import McpServerConfig
from vllm_nb.server.mcp_servers import McpServers

ASK = [{"role": "user", "content": "When is noon?"}]
OWN = {"name": "noon", "description": "The client's own", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def live(tiny_model_path, serving, mcp_clock):
    with Engine(tiny_model_path, EngineConfig(num_kv_blocks=2048, dtype="float32")) as engine:
        host = EngineHost.ready(engine)
        host.mcp = McpServers([McpServerConfig("clock", sys.executable, (mcp_clock,))])
        with serving(host) as live:
            yield live


@pytest.fixture(scope="module")
def client(live):
    with anthropic.Anthropic(base_url=live.url, api_key="test-key", max_retries=0, timeout=60) as client:
        yield client


def count(client, **fields):
    return client.messages.count_tokens(model="tiny-llama", messages=ASK, **fields).input_tokens


def test_tools_are_shown_to_the_model_unless_they_are_not_wanted(client):
    shown = count(client)
    plain = count(client, extra_body={"mcp": "off"})
    assert shown > plain + 1000  # the tiny model has a token a character
    assert count(client, extra_headers={"x-vllm-nb-mcp": "off"}) == plain
    assert count(client, tool_choice={"type": "none"}) == plain
    assert count(client, tools=[OWN]) < shown  # hides the server's noon, whose schema is longer


def test_the_state_of_the_servers(live, tiny):
    with live.client() as http:
        (state,) = http.get("/inspect/mcp").json()
    assert (state["name"], state["status"], state["error"], state["restarts"]) == ("clock", "ready", None, 0)
    assert "noon" in state["tools"]
    with tiny.client() as http:
        assert http.get("/inspect/mcp").json() == []


def test_what_is_refused(client, tiny):
    ask = {"model": "tiny-llama", "messages": ASK, "max_tokens": 5}
    with pytest.raises(anthropic.BadRequestError, match="mcp must be one of inject, execute, off, not 'run'"):
        client.messages.create(**ask, extra_body={"mcp": "run"})
    with tiny.openai() as openai_client:
        request = {"model": "tiny-llama", "input": "x", "extra_body": {"mcp": "execute"}}
        with pytest.raises(openai.BadRequestError, match="start the server with --mcp-config"):
            openai_client.responses.create(**request)
