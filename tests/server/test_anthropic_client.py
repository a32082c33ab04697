"""Anthropic's official client against the real model, and what its dialect makes of every kind of block."""

import json

import anthropic
import pytest

from vllm_nb.errors import RequestError
from vllm_nb.messages import ToolCall
from vllm_nb.outputs import Choice, GenerationOutput, StreamItem, Timings, ToolCallDelta, ToolRun, Usage
from vllm_nb.server.anthropic_format import MessageFormat
from vllm_nb.server.anthropic_requests import MessagesRequest

MODEL = "SmolLM2-135M-Instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
COLD = {"extra_body": {"temperature": 0}}  # newer clients have no argument for it
GREEDY = {"model": MODEL, "messages": QUESTION, "max_tokens": 6, **COLD}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def connect(live, **options):
    settings = {"api_key": "test-key", "max_retries": 0, "timeout": 60} | options
    return anthropic.Anthropic(base_url=live.url, **settings)


@pytest.fixture(scope="module")
def client(smollm2):
    with connect(smollm2) as client:
        yield client


@pytest.fixture(scope="module")
def answer(client):
    return client.messages.create(**GREEDY)


def test_a_whole_message(answer, smollm2):
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", MODEL)
    assert answer.id.startswith("msg_")
    assert answer._request_id
    (block,) = answer.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert (answer.stop_reason, answer.stop_sequence) in {("end_turn", None), ("max_tokens", None)}
    usage = answer.usage
    prompt = len(smollm2.host.engine.encode(QUESTION))
    assert usage.input_tokens + usage.cache_read_input_tokens == prompt
    assert (usage.output_tokens, usage.cache_creation_input_tokens) == (6, 0) or answer.stop_reason == "end_turn"


def test_a_streamed_message_is_the_whole_one(client, answer):
    kinds = []
    with client.messages.stream(**GREEDY) as stream:
        pieces = [event.text for event in stream if kinds.append(event.type) or event.type == "text"]
        final = stream.get_final_message()
    assert "".join(pieces) == answer.content[0].text == final.content[0].text
    assert len(pieces) > 1
    assert (final.stop_reason, final.usage.output_tokens) == (answer.stop_reason, answer.usage.output_tokens)
    total = answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    assert final.usage.input_tokens + final.usage.cache_read_input_tokens == total
    own = [kind for kind in kinds if kind not in ("text", "content_block_delta", "message_stop")]
    assert own == ["message_start", "content_block_start", "content_block_stop", "message_delta"]
    assert kinds[-1] == "message_stop"


def test_the_stream_on_the_wire(smollm2):
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 6, "stream": True}
    with smollm2.client() as http, http.stream("POST", "/v1/messages", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        *events, rest = response.read().decode().split("\n\n")
    assert rest == ""
    bodies = []
    for event in events:
        name, data = event.split("\n")
        bodies.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {bodies[-1]['type']}"
    assert [b["type"] for b in bodies[:3]] == ["message_start", "content_block_start", "ping"]
    assert bodies[0]["message"]["usage"]["input_tokens"] > 0
    assert bodies[-1] == {"type": "message_stop"}


def test_systems_stops_and_limits(client, smollm2):
    system = [{"type": "text", "text": "Answer in French.", "cache_control": {"type": "ephemeral"}}]
    asked = {"model": MODEL, "messages": QUESTION, "system": system}
    expected = [{"role": "system", "content": "Answer in French."}, *QUESTION]
    assert client.messages.count_tokens(**asked).input_tokens == len(smollm2.host.engine.encode(expected))
    full = client.messages.create(**asked, max_tokens=20, **COLD).content[0].text
    stop = full[3:6]
    cut = client.messages.create(**asked, max_tokens=20, **COLD, stop_sequences=[stop, "never"])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    assert cut.content[0].text == full[: full.index(stop)]
    with client.messages.stream(**asked, max_tokens=20, **COLD, stop_sequences=[stop]) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", stop)
    assert client.messages.create(**asked, max_tokens=1).stop_reason == "max_tokens"


def test_cached_tokens_are_told_apart(client):
    long = [{"role": "user", "content": "Summarise this. " + "The lazy dog jumps over the quick brown fox. " * 8}]
    first, second = (client.messages.create(model=MODEL, messages=long, max_tokens=1).usage for _ in range(2))
    assert second.input_tokens <= 16
    assert second.input_tokens + second.cache_read_input_tokens == first.input_tokens + first.cache_read_input_tokens


def test_tools_are_part_of_the_prompt(client):
    plain = client.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens
    assert client.messages.count_tokens(model=MODEL, messages=QUESTION, tools=[WEATHER]).input_tokens > plain + 30


def test_a_tool_is_called_and_its_result_understood(client):
    """Whole and streamed; the call is demanded, and so fits its schema."""
    ask = {"model": MODEL, "messages": [{"role": "user", "content": "What is the weather in Paris?"}], "max_tokens": 80}
    tools = [WEATHER | {"input_schema": WEATHER["input_schema"] | {"additionalProperties": False}}]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    answer = client.messages.create(**ask, tools=tools, tool_choice=choice, **COLD)
    (call,) = answer.content
    assert (answer.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "get_weather")
    assert list(call.input) == ["city"]
    with client.messages.stream(**ask, tools=tools, tool_choice=choice, **COLD) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert json.loads("".join(pieces)) == call.input == final.content[0].input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain, 12 degrees"}
    turns = [*ask["messages"], {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    after = client.messages.create(**ask | {"messages": turns}, tools=tools, tool_choice={"type": "none"}, **COLD)
    assert after.content[0].type == "text"


def test_an_answer_by_schema(client):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["n"]}
    config = {"format": {"type": "json_schema", "schema": schema | {"additionalProperties": False}}}
    answer = client.messages.create(**GREEDY | {"max_tokens": 60}, output_config=config)
    assert 1 <= json.loads(answer.content[0].text)["n"] <= 9


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "Par"}]}, "must end with the user's turn"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "takes text only"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, r"messages\[0\].content\[0\]: 'video'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "'text' is no complete block"),
        ({"extra_body": {"temperature": 101}}, "temperature must be a number from 0 to 100, not 101"),
        ({"max_tokens": 0}, "max_tokens must be a whole number of at least 1"),
        ({"stop_sequences": ["x"] * 17}, "stop must hold at most 16 texts"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "runs at Anthropic"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice must name one of"),
        ({"tool_choice": {"type": "some"}}, "tool_choice must be"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format must be"),
    ],
)
def test_what_is_refused(client, change, message):
    with pytest.raises(anthropic.BadRequestError, match=message) as caught:
        client.messages.create(**GREEDY | change)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "invalid_request_error"


def test_errors_before_any_route_have_its_shape_too(smollm2, client):
    def kind(call, error):
        with pytest.raises(error) as caught:
            call()
        assert caught.value.body["type"] == "error"
        return caught.value.body["error"]["type"]

    with connect(smollm2, api_key="wrong") as stranger:
        assert kind(lambda: stranger.messages.create(**GREEDY), anthropic.AuthenticationError) == "authentication_error"
    assert kind(lambda: client.messages.create(**GREEDY | {"model": "x"}), anthropic.NotFoundError) == "not_found_error"
    large = [{"role": "user", "content": "x" * (33 * 2**20)}]
    called = lambda: client.messages.create(**GREEDY | {"messages": large})  # noqa: E731
    assert kind(called, anthropic.RequestTooLargeError) == "request_too_large"
    with smollm2.client() as http:
        response = http.post("/v1/messages", content=b"{", headers={"content-type": "application/json"})
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_bearer_token_will_do(smollm2):
    with connect(smollm2, api_key=None, auth_token="test-key") as client:
        assert client.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens > 10


def test_a_full_queue_is_an_overload(tiny):
    with connect(tiny) as client:
        body = {
            "model": "tiny-llama",
            "messages": QUESTION,
            "max_tokens": 3500,
            "extra_body": {"temperature": 0},
        }  # no end
        streams = []
        try:
            for number in range(6):  # two run and four wait, once they have been taken up
                streams.append(client.messages.create(**body, stream=True))
                tiny.eventually(lambda state, asked=number + 1: state["running"] == min(asked, 2))
            tiny.eventually(lambda state: state["waiting"] == 4)
            with pytest.raises(anthropic.OverloadedError) as caught:
                client.messages.create(**body)
        finally:
            for stream in streams:
                stream.close()
    assert caught.value.body["error"]["type"] == "overloaded_error"
    assert caught.value.response.headers["retry-after"]
    tiny.eventually_empty()


# What requests mean


def conversation(messages, **fields):
    return MessagesRequest(model="m", max_tokens=5, messages=messages, **fields).conversation()


def test_blocks_become_turns():
    said = conversation(
        [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Ask.", "signature": "s"},
                    {"type": "redacted_thinking", "data": "?"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Köln"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
                    {"type": "tool_result", "tool_use_id": "t2", "content": "no such city", "is_error": True},
                    {"type": "text", "text": "And?"},
                ],
            },
        ],
        system=[{"type": "text", "text": "Be"}, {"type": "text", "text": "short."}],
    )
    assert [message.role for message in said] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert said[0].text == "Be\nshort."
    assert (said[2].text, said[2].reasoning_content) == ("I look.", "Ask.")
    (call,) = said[2].tool_calls
    assert (call.id, call.name, json.loads(call.arguments)) == ("t1", "get_weather", {"city": "Köln"})
    assert [(m.tool_call_id, m.text) for m in said[3:5]] == [("t1", "rain"), ("t2", "Error: no such city")]
    assert said[5].text == "And?"


def test_what_the_server_ran_becomes_turns_too():
    said = conversation(
        [
            {"role": "user", "content": "?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "mcp_tool_use", "id": "t1", "name": "clock", "server_name": "s", "input": {}},
                    {"type": "mcp_tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "noon"}]},
                    {"type": "text", "text": "It is noon."},
                ],
            },
            {"role": "user", "content": "Thanks"},
        ]
    )
    assert [message.role for message in said] == ["user", "assistant", "tool", "assistant", "user"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"enable_thinking": False, "include_reasoning": False}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            {"enable_thinking": True, "include_reasoning": True},
        ),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "xhigh"}),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "any"}},
            {"tool_choice": "required", "parallel_tool_calls": True},
        ),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            {"tool_choice": "auto", "parallel_tool_calls": False},
        ),
    ],
)
def test_options(fields, expected):
    options = MessagesRequest(model="m", max_tokens=5, messages=QUESTION, **fields).options()
    assert expected.items() <= options.items()


def test_schemas_are_structured_outputs():
    schema = {"type": "object"}
    config = {"format": {"type": "json_schema", "schema": schema}}
    params = MessagesRequest(max_tokens=5, messages=QUESTION, output_config=config).sampling_params()
    assert params.structured_outputs.json == schema
    with pytest.raises(RequestError, match="max_tokens must be"):
        MessagesRequest(max_tokens=-1, messages=QUESTION).sampling_params()


# What answers look like: a stream that only a larger model would give, read by the client's own accumulator


def items():
    def item(text="", **fields):
        return StreamItem("r", 0, text, [1], **fields)

    yield item(reasoning="Let me ")
    yield item(reasoning="think.")
    yield item("I look ", reasoning=" So:")
    yield item("it up.", tool_calls=[ToolCallDelta(0, "t1", "get_weather", "")])
    yield item(tool_calls=[ToolCallDelta(0, arguments='{"city": ')])
    yield item(tool_calls=[ToolCallDelta(0, arguments='"Köln"}'), ToolCallDelta(1, "t2", "clock", "{}")])
    yield item(tool_runs=[ToolRun(ToolCall("t3", "sum", '{"a": 1}'), "maths", "2")])
    yield item("Done", finish_reason="tool_calls")


CALLS = [ToolCall("t1", "get_weather", '{"city": "Köln"}'), ToolCall("t2", "clock", "{}")]
EXPECTED = [
    {"type": "thinking", "thinking": "Let me think. So:", "signature": ""},
    {"type": "text", "text": "I look it up."},
    {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Köln"}},
    {"type": "tool_use", "id": "t2", "name": "clock", "input": {}},
    {"type": "mcp_tool_use", "id": "t3", "name": "sum", "server_name": "maths", "input": {"a": 1}},
    {"type": "mcp_tool_result", "tool_use_id": "t3", "is_error": False, "content": [{"type": "text", "text": "2"}]},
    {"type": "text", "text": "Done"},
]
USAGE = Usage(prompt_tokens=30, completion_tokens=9, cached_tokens=16)


def form():
    return MessageFormat(id="msg_1", model="m", prompt_tokens=30)


def test_a_whole_answer_of_all_kinds():
    whole = form()
    whole.collect(0, list(items()))
    output = GenerationOutput("r", [Choice(tool_calls=CALLS, finish_reason="tool_calls")], USAGE, Timings())
    body = whole.whole([output], USAGE, Timings())
    assert body["content"] == EXPECTED
    assert (body["stop_reason"], body["usage"]["input_tokens"]) == ("tool_use", 14)
    malformed = form()
    malformed.collect(0, list(items()))
    output.choices[0].tool_calls = CALLS[1:]
    kept = malformed.whole([output], USAGE, Timings())["content"]
    assert [block["id"] for block in kept if block["type"] == "tool_use"] == ["t2"]


def test_a_streamed_answer_of_all_kinds():
    """Anthropic's accumulator makes the same message of the events."""
    from anthropic.lib.streaming._messages import accumulate_event

    streamed = form()
    chunks = streamed.first_chunks()
    for item in items():
        chunks += streamed.chunks(0, [item])
    chunks = streamed.last_chunks(chunks, USAGE, Timings())
    open_blocks, snapshot, buffers = [], None, {}
    for chunk in chunks:
        if chunk["type"] == "content_block_start":
            assert not open_blocks
            open_blocks.append(chunk["index"])
        if chunk["type"] == "content_block_stop":
            assert open_blocks.pop() == chunk["index"]
        if chunk["type"] not in ("ping", "message_stop"):
            snapshot = accumulate_event(event=chunk, current_snapshot=snapshot, json_bufs=buffers)
    found = [b if isinstance(b, dict) else b.to_dict() for b in snapshot.content]
    assert found == EXPECTED
    assert snapshot.stop_reason == "tool_use"
    assert (snapshot.usage.input_tokens, snapshot.usage.cache_read_input_tokens) == (14, 16)
