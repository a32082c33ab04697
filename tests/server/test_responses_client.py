"""The Responses API by the official client against the real model, and what it makes of every kind of item."""

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

MODEL = "SmolLM2-135M-Instruct"
QUESTION = "What is the capital of France? Answer with one word."
GREEDY = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 8}
BABBLE = {"model": "tiny-llama", "input": "hello", "extra_body": {"seed": 3, "ignore_eos": True}}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}


@pytest.fixture(scope="module")
def client(smollm2):
    with smollm2.openai() as client:
        yield client


@pytest.fixture(scope="module")
def tiny_client(tiny):
    with tiny.openai() as client:
        yield client


@pytest.fixture(scope="module")
def answer(client):
    return client.responses.create(**GREEDY, instructions="Be brief.", metadata={"who": "me"})


def test_a_whole_response(answer, smollm2):
    assert (answer.object, answer.model) == ("response", MODEL)
    assert answer.id.startswith("resp_")
    (item,) = answer.output
    assert (item.type, item.role, item.content[0].type) == ("message", "assistant", "output_text")
    assert "Paris" in answer.output_text
    assert answer.status in ("completed", "incomplete")
    assert item.status == answer.status
    assert (answer.instructions, answer.metadata, answer.max_output_tokens) == ("Be brief.", {"who": "me"}, 8)
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    assert answer.usage.input_tokens == len(smollm2.host.engine.encode(asked))
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_a_streamed_response_is_the_whole_one(client, answer):
    with client.responses.stream(**GREEDY, instructions="Be brief.") as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{answer.status}",
    ]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == answer.output_text == events[-1].response.output_text
    assert len(deltas) > 1
    assert events[-1].response.usage.output_tokens == answer.usage.output_tokens
    assert client.responses.retrieve(events[0].response.id).output_text == answer.output_text


def test_the_stream_on_the_wire(smollm2):
    with smollm2.client() as http, http.stream("POST", "/v1/responses", json=GREEDY | {"stream": True}) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        *events, rest = response.read().decode().split("\n\n")
    assert rest == ""
    for event in events:
        name, data = event.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert response.headers["x-request-id"] == json.loads(events[0].split("data: ")[1])["response"]["id"]


def test_cut_off_is_incomplete(tiny_client):
    short = tiny_client.responses.create(**BABBLE, max_output_tokens=2)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert short.output[-1].status == "incomplete"
    events = list(tiny_client.responses.create(**BABBLE, max_output_tokens=2, stream=True))
    assert events[-1].type == "response.incomplete"


def test_logprobs(client):
    options = GREEDY | {"top_logprobs": 2, "include": ["message.output_text.logprobs"]}
    entries = client.responses.create(**options).output[0].content[0].logprobs
    assert entries
    assert all(len(entry.top_logprobs) == 2 and entry.top_logprobs[0].token == entry.token for entry in entries)
    streamed = []
    for event in client.responses.create(**options, stream=True):
        streamed += event.logprobs if event.type == "response.output_text.delta" else []
    assert [entry.token for entry in streamed] == [entry.token for entry in entries][: len(streamed)]


# Kept responses


def test_going_on_from_an_earlier_one(client, smollm2):
    first = client.responses.create(model=MODEL, input="My name is Zoe.", max_output_tokens=12, temperature=0)
    second = client.responses.create(
        model=MODEL, input="And?", previous_response_id=first.id, instructions="Be kind.", max_output_tokens=4
    )
    assert second.previous_response_id == first.id
    turns = [("system", "Be kind."), ("user", "My name is Zoe."), ("assistant", first.output_text), ("user", "And?")]
    ids = smollm2.host.engine.encode([{"role": role, "content": text} for role, text in turns])
    assert second.usage.input_tokens == len(ids)
    again = client.responses.create(
        model=MODEL,
        input=[{"role": "user", "content": "My name is Zoe."}, *first.output, {"role": "user", "content": "And?"}],
        instructions="Be kind.",
        max_output_tokens=4,
    )
    assert again.usage.input_tokens == len(ids)
    texts = [item.content[0].text for item in client.responses.input_items.list(second.id, order="asc")]
    assert texts == ["My name is Zoe.", first.output_text, "And?"]
    page = client.responses.input_items.list(second.id, limit=2)
    assert page.has_more
    assert [item.content[0].text for item in page.data] == ["And?", first.output_text]
    assert len(list(client.responses.input_items.list(second.id, limit=1))) == 3  # by `after`


def test_retrieve_and_delete(tiny_client):
    kept = tiny_client.responses.create(**BABBLE, max_output_tokens=2)
    assert tiny_client.responses.retrieve(kept.id).to_dict() == kept.to_dict()
    tiny_client.responses.delete(kept.id)
    unkept = tiny_client.responses.create(**BABBLE, max_output_tokens=2, store=False)
    for gone in (kept.id, unkept.id, "resp_x"):
        for call in (tiny_client.responses.retrieve, tiny_client.responses.delete, tiny_client.responses.cancel):
            with pytest.raises(openai.NotFoundError, match="is stored"):
                call(gone)
        with pytest.raises(openai.NotFoundError):
            tiny_client.responses.create(**BABBLE, previous_response_id=gone)


def test_cancel(tiny_client, tiny):
    stream = tiny_client.responses.create(**BABBLE, max_output_tokens=8000, stream=True)
    started = next(event for event in stream if event.type == "response.output_text.delta")
    (running,) = tiny.host._active
    assert tiny_client.responses.retrieve(running).status == "in_progress"
    with pytest.raises(openai.BadRequestError, match="still in progress"):
        tiny_client.responses.create(**BABBLE, previous_response_id=running)
    assert tiny_client.responses.cancel(running).status == "cancelled"
    *_, last = stream
    assert (last.type, last.response.status) == ("response.incomplete", "cancelled")
    kept = tiny_client.responses.retrieve(running)
    assert kept.status == "cancelled"
    assert started.delta in kept.output_text
    with pytest.raises(openai.BadRequestError, match="only one in progress"):
        tiny_client.responses.cancel(running)
    tiny.eventually_empty()


def test_one_that_nobody_waits_for_is_cancelled(tiny_client, tiny):
    stream = tiny_client.responses.create(**BABBLE, max_output_tokens=8000, stream=True)
    response_id = next(iter(stream)).response.id
    stream.close()
    tiny.eventually_empty()
    assert tiny_client.responses.retrieve(response_id).status == "cancelled"


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


# What is refused

IMAGE = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"background": True}, "background is not supported here"),
        ({"conversation": "conv_1"}, "conversation is not supported"),
        ({"truncation": "auto"}, "truncation is not supported"),
        ({"tools": [{"type": "web_search"}]}, "'web_search' is not supported here"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice must name one of"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice must be"),
        ({"input": []}, "messages is empty"),
        ({"input": IMAGE}, "takes text only"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, r"input\[0\]: items of type 'item_reference'"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, r"input\[0\].content\[0\]: 'input_file'"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "this function_call lacks a field"),
        ({"input": [{"role": "robot", "content": "x"}]}, "a message has a role"),
        ({"temperature": 101}, "temperature must be"),
        ({"max_output_tokens": 0}, "max_output_tokens must be a whole number"),
        ({"top_logprobs": 21}, "top_logprobs must be"),
        ({"reasoning": {"effort": "huge"}}, "reasoning_effort must be"),
        ({"text": {"format": {"type": "xml"}}}, "text.format must be"),
    ],
)
def test_what_is_refused(client, change, message):
    with pytest.raises(openai.BadRequestError, match=message):
        client.responses.create(**GREEDY | change)


def test_other_errors(client):
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.responses.create(**GREEDY | {"model": "gpt-9"})
    kept = client.responses.create(**GREEDY)
    with pytest.raises(openai.BadRequestError, match="not streamed"):
        client.responses.retrieve(kept.id, stream=True)
    with pytest.raises(openai.BadRequestError, match="there is no item"):
        client.responses.input_items.list(kept.id, after="x")


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
