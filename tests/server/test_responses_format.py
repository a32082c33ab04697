"""The Responses API's requests and answers without a model: what items mean, and events as the official client reads
them."""

import json

import openai
import pytest
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from vllm_nb.errors import RequestError
from vllm_nb.messages import ToolCall
from vllm_nb.outputs import Choice, GenerationOutput, StreamItem, Timings, ToolCallDelta, ToolRun, Usage
from vllm_nb.server.responses_format import ResponseFormat
from vllm_nb.server.responses_items import as_items, as_messages
from vllm_nb.server.responses_requests import ResponsesRequest
from vllm_nb.server.responses_store import ResponseStore, Stored

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}


def test_the_store_forgets_the_oldest():
    def body(number, text="x"):
        return {"id": f"r{number}", "output": [], "text": text}

    store = ResponseStore(max_responses=3, max_bytes=1000)
    for number in range(4):
        store.put(Stored(body(number), [], 0))
        if number == 2:
            store.get("r0")
    assert [f"r{n}" in store for n in range(4)] == [True, False, True, True]
    store.put(Stored(body(9, "x" * 800), [], 0))
    assert "r9" in store
    store.put(Stored(body(10), [], 2000))
    assert "r10" not in store


# What requests mean


def test_items_become_turns():
    given = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Ask."}]},
        {"role": "assistant", "content": "I look."},
        {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Köln"}'},
        {"type": "function_call", "call_id": "c2", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "noon"}]},
        {"type": "mcp_list_tools", "server_label": "s", "tools": []},
        {"type": "mcp_call", "id": "m1", "server_label": "s", "name": "sum", "arguments": "{}", "output": "2"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Rain."}]},
    ]
    items = as_items(given)
    assert len({item["id"] for item in items}) == len(items)
    said = as_messages(items)
    roles = ["developer", "user", "assistant", "tool", "tool", "assistant", "tool", "assistant"]
    assert [message.role for message in said] == roles
    assert (said[2].text, said[2].reasoning_content) == ("I look.", "Ask.")
    assert said[2].tool_calls == (ToolCall("c1", "get_weather", '{"city": "Köln"}'), ToolCall("c2", "clock", "{}"))
    assert [(m.tool_call_id, m.text) for m in said if m.role == "tool"] == [("c1", "rain"), ("c2", "noon"), ("m1", "2")]
    assert said[-1].text == "Rain."


def test_options_and_structure():
    class Person(BaseModel):
        name: str

    schema = Person.model_json_schema()
    form = {"type": "json_schema", "name": "p", "schema": schema, "strict": True}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]}
    body = ResponsesRequest(
        input="x",
        text={"format": form},
        tools=[WEATHER, WEATHER | {"name": "other"}],
        tool_choice=allowed,
        reasoning={"effort": "low"},
        parallel_tool_calls=False,
        max_output_tokens=7,
    )
    params = body.sampling_params()
    assert (params.structured_outputs.json, params.max_tokens) == (schema, 7)
    options = body.options()
    assert ([tool["name"] for tool in options["tools"]], options["tool_choice"]) == (["get_weather"], "required")
    assert (options["reasoning_effort"], options["parallel_tool_calls"]) == ("low", False)
    json_object = ResponsesRequest(input="x", text={"format": {"type": "json_object"}}).sampling_params()
    assert json_object.structured_outputs.json_object
    with pytest.raises(RequestError, match=r"text\.format"):
        ResponsesRequest(input="x", text={"format": {"type": "json_schema"}}).sampling_params()


# What answers look like: a stream that only a larger model would give, read by the client's own accumulator


def items():
    def item(text="", **fields):
        return StreamItem("r", 0, text, [1], **fields)

    yield item(reasoning="Let me ")
    yield item("I look ", reasoning="think.")
    yield item("it up.", tool_calls=[ToolCallDelta(0, "c1", "get_weather", "")])
    yield item(tool_calls=[ToolCallDelta(0, arguments='{"city": ')])
    yield item(tool_calls=[ToolCallDelta(0, arguments='"Köln"}'), ToolCallDelta(1, "c2", "clock", "{}")])
    yield item(tool_runs=[ToolRun(ToolCall("c3", "sum", '{"a": 1}'), "maths", "2")])
    yield item("Done", finish_reason="tool_calls")


CALLS = [ToolCall("c1", "get_weather", '{"city": "Köln"}'), ToolCall("c2", "clock", "{}")]
USAGE = Usage(prompt_tokens=30, completion_tokens=9, cached_tokens=16, reasoning_tokens=4)


def form(kept=None):
    keep = (lambda body: None) if kept is None else kept.append
    return ResponseFormat(
        id="resp_1", model="m", tokenizer=None, echo=ResponsesRequest(input="x").echo(), on_change=keep
    )


def outline(output):
    """What an output says, without its ids."""
    found = []
    for item in output:
        item = item if isinstance(item, dict) else item.to_dict()
        if item["type"] in ("message", "reasoning"):
            found.append((item["type"], item["content"][0]["text"]))
        elif item["type"] == "function_call":
            found.append((item["call_id"], item["name"], item["arguments"]))
        else:
            found.append((item["server_label"], item["name"], item["arguments"], item["output"]))
        assert item["status"] == "completed"
    return found


EXPECTED = [
    ("reasoning", "Let me think."),
    ("message", "I look it up."),
    ("c1", "get_weather", '{"city": "Köln"}'),
    ("c2", "clock", "{}"),
    ("maths", "sum", '{"a": 1}', "2"),
    ("message", "Done"),
]


def test_a_whole_answer_of_all_kinds():
    kept = []
    whole = form(kept)
    with whole.lifetime():
        whole.collect(0, list(items()))
        output = GenerationOutput("r", [Choice(tool_calls=CALLS, finish_reason="tool_calls")], USAGE, Timings())
        body = whole.whole([output], USAGE, Timings())
    assert outline(body["output"]) == EXPECTED
    assert [state["status"] for state in kept] == ["in_progress", "completed"]
    assert body["usage"]["output_tokens_details"] == {"reasoning_tokens": 4}
    malformed = form()
    malformed.collect(0, list(items()))
    output.choices[0].tool_calls = CALLS[1:]
    assert outline(malformed.whole([output], USAGE, Timings())["output"]) == [EXPECTED[i] for i in (0, 1, 3, 4, 5)]


def test_a_streamed_answer_of_all_kinds():
    streamed = form()
    chunks = streamed.first_chunks()
    for item in items():
        chunks += streamed.chunks(0, [item])
    chunks = streamed.last_chunks(chunks, USAGE, Timings())
    assert [chunk["sequence_number"] for chunk in chunks] == list(range(len(chunks)))
    adapter = TypeAdapter(ResponseStreamEvent)
    state = ResponseStreamState(input_tools=[], text_format=openai.omit)
    for chunk in chunks:
        state.handle_event(adapter.validate_python(chunk))
    assert outline(state._completed_response.output) == EXPECTED
    calls = [chunk["delta"] for chunk in chunks if chunk["type"] == "response.function_call_arguments.delta"]
    assert calls == ['{"city": ', '"Köln"}', "{}"]


def test_a_failure_is_the_last_event_and_kept():
    kept = []
    failing = form(kept)
    with failing.lifetime():
        failing.chunks(0, [StreamItem("r", 0, "half", [1])])
        event = json.loads(failing.error_event(RequestError("no memory")).split(b"data: ")[1])
    assert (event["type"], event["response"]["status"]) == ("response.failed", "failed")
    assert event["response"]["error"] == {"code": "server_error", "message": "no memory"}
    assert [state["status"] for state in kept] == ["in_progress", "failed"]
    assert kept[-1]["output"][0]["content"][0]["text"] == "half"
