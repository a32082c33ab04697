"""The tools of MCP servers in requests of every dialect: shown to the model, and executed where the client asks."""

import http.client
import json
import sys

import anthropic
import openai
import pytest

from vllm_nb.server.host import EngineHost
from vllm_nb.server.mcp_config import McpServerConfig
from vllm_nb.server.mcp_servers import McpServers

MODEL = "SmolLM2-135M-Instruct"
ASK = [{"role": "user", "content": "When is noon?"}]
OWN = {"name": "noon", "description": "The client's own", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def live(smollm2, serving, mcp_clock):
    """A second server over the engine of the first, with MCP."""
    host = EngineHost.ready(smollm2.host.engine)
    host.mcp = McpServers([McpServerConfig("clock", sys.executable, (mcp_clock,))])
    with serving(host) as live:
        yield live


@pytest.fixture(scope="module")
def client(live):
    with anthropic.Anthropic(base_url=live.url, api_key="test-key", max_retries=0, timeout=60) as client:
        yield client


def count(client, **fields):
    return client.messages.count_tokens(model=MODEL, messages=ASK, **fields).input_tokens


def test_tools_are_shown_to_the_model_unless_they_are_not_wanted(client):
    shown = count(client)
    plain = count(client, extra_body={"mcp": "off"})
    assert shown > plain + 200
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
    ask = {"model": MODEL, "messages": ASK, "max_tokens": 5}
    with pytest.raises(anthropic.BadRequestError, match="mcp must be one of inject, execute, off, not 'run'"):
        client.messages.create(**ask, extra_body={"mcp": "run"})
    with tiny.openai() as openai_client:
        request = {"model": "tiny-llama", "input": "x", "extra_body": {"mcp": "execute"}}
        with pytest.raises(openai.BadRequestError, match="start the server with --mcp-config"):
            openai_client.responses.create(**request)


# Executed: the first call is demanded, so that also a small model makes it; what follows is its own

NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
NOON = {"type": "function", "function": {"name": "noon"}}


def calling_noon(mode="execute"):
    """A request of the chat API that calls noon."""
    return {
        "model": MODEL,
        "messages": ASK,
        "tool_choice": NOON,
        "parallel_tool_calls": False,
        "max_tokens": 80,
        "temperature": 0,
        "extra_body": {"mcp": mode},
    }


def test_chat_completions(live):
    with live.openai() as client:
        answer = client.chat.completions.create(**calling_noon())
        message = answer.choices[0].message
        (run,) = message.mcp_calls
        assert (run["server"], run["name"], run["output"], run["is_error"]) == ("clock", "noon", "12:00", False)
        assert message.tool_calls is None
        first = client.chat.completions.create(**calling_noon("inject"))
        (call,) = first.choices[0].message.tool_calls  # not executed: it is the client's to do
        assert call.function.name == "noon"
        assert answer.usage.prompt_tokens > 2 * first.usage.prompt_tokens  # two turns, and the second has the result
        assert answer.usage.completion_tokens > first.usage.completion_tokens

        chunks = list(client.chat.completions.create(**calling_noon(), stream=True))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    (streamed,) = [delta.mcp_calls for delta in deltas if hasattr(delta, "mcp_calls")]
    assert streamed[0]["output"] == "12:00"
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert not any(delta.tool_calls for delta in deltas)
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == [answer.choices[0].finish_reason]
    live.eventually_empty()


def test_messages(client):
    choice = {"type": "tool", "name": "noon", "disable_parallel_tool_use": True}
    asked = {"model": MODEL, "messages": ASK, "max_tokens": 80, "tool_choice": choice}
    options = {"extra_headers": {"x-vllm-nb-mcp": "execute"}, "extra_body": {"temperature": 0}}
    answer = client.messages.create(**asked, **options)
    kinds = [block.type for block in answer.content]
    assert kinds[:2] == ["mcp_tool_use", "mcp_tool_result"]
    assert answer.content[1].content[0]["text"] == "12:00"
    assert "tool_use" not in kinds
    events = list(client.messages.create(**asked, **options, stream=True))
    starts = [event for event in events if event.type == "content_block_start"]
    assert [event.index for event in starts] == list(range(len(starts)))
    assert [event.content_block.type for event in starts] == kinds
    text = "".join(e.delta.text for e in events if e.type == "content_block_delta" and e.delta.type == "text_delta")
    assert text == "".join(block.text for block in answer.content if block.type == "text")


def test_responses_and_going_on_from_one(live):
    with live.openai() as client:
        options = {"model": MODEL, "max_output_tokens": 80, "temperature": 0, "extra_body": {"mcp": "execute"}}
        options["parallel_tool_calls"] = False
        named = {"type": "function", "name": "noon"}
        answer = client.responses.create(input="When is noon?", tool_choice=named, **options)
        call = answer.output[0]
        assert (call.type, call.server_label, call.name, call.output, call.error) == (
            "mcp_call",
            "clock",
            "noon",
            "12:00",
            None,
        )
        streamed = list(client.responses.create(input="When is noon?", tool_choice=named, **options, stream=True))
        assert streamed[-1].response.output[0].output == "12:00"
        assert streamed[-1].response.output_text == answer.output_text
        again = client.responses.create(
            input="And midnight?", tool_choice="none", previous_response_id=answer.id, **options
        )
        turns = again.usage.input_tokens
        assert turns > client.responses.create(input="And midnight?", tool_choice="none", **options).usage.input_tokens


def test_what_fails_is_told_to_the_model(live):
    with live.openai() as client:
        options = calling_noon() | {"tool_choice": {"type": "function", "function": {"name": "fail"}}}
        (run,) = client.chat.completions.create(**options).choices[0].message.mcp_calls
        assert run["is_error"]
        with pytest.raises(openai.BadRequestError, match="n must be 1 where tools are executed"):
            client.chat.completions.create(**options, n=2)


def test_calls_of_the_clients_own_tools_are_left_to_it(live):
    own = {"type": "function", "function": {"name": "mine", "parameters": NOTHING}}
    with live.openai() as client:
        options = calling_noon() | {"tools": [own], "tool_choice": {"type": "function", "function": {"name": "mine"}}}
        answer = client.chat.completions.create(**options).choices[0]
        assert ([call.function.name for call in answer.message.tool_calls], answer.finish_reason) == (
            ["mine"],
            "tool_calls",
        )
        chunks = list(client.chat.completions.create(**options, stream=True))
    calls = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    assert [call.function.name for call in calls if call.function.name] == ["mine"]


def test_an_abort_between_two_turns_ends_the_answer(live, monkeypatch):
    """It comes while the second turn is being queued, when the engine has nothing of the request."""
    engine, aborted = live.host.engine, []
    queue = engine.agenerate_streams

    async def aborted_meanwhile(*args, **options):
        aborted.append(live.host.in_flight)
        live.host.abort_all()
        return await queue(*args, **options)

    monkeypatch.setattr(engine, "agenerate_streams", aborted_meanwhile)
    with live.openai() as client:
        options = calling_noon() | {"max_tokens": 2000}
        options["extra_body"] |= {"ignore_eos": True}
        answer = client.chat.completions.create(**options)
    assert aborted == [0, 1]
    assert answer.choices[0].finish_reason == "abort"
    assert answer.choices[0].message.mcp_calls[0]["output"] == "12:00"
    assert answer.usage.completion_tokens < 200
    live.eventually_empty()


def test_a_client_that_leaves_while_a_tool_runs(live):
    nap = {"type": "function", "function": {"name": "nap"}}
    body = {"model": MODEL, "messages": ASK, "tool_choice": nap, "max_tokens": 80, "mcp": "execute"}
    headers = {"Authorization": "Bearer test-key", "Content-Type": "application/json"}
    client = http.client.HTTPConnection(live.url.removeprefix("http://"))
    client.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    live.eventually(lambda state: state["requests"] == 1 and state["running"] + state["waiting"] == 1)
    live.eventually(lambda state: state["running"] + state["waiting"] == 0)
    assert live.state()["requests"] == 1  # it is the tool that it waits for
    client.close()
    live.eventually_empty()
