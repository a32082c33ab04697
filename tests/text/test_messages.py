"""Messages, tools and structured outputs as data: OpenAI's dictionaries in and out, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_nb.chat_options import ChatOptions, Tool
from vllm_nb.errors import RequestError
from vllm_nb.messages import ChatMessage, ToolCall
from vllm_nb.outputs import Choice
from vllm_nb.sampling import MAX_GRAMMAR_DEPTH, SamplingParams, StructuredOutputs

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "hi", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "so", "reasoning_content": "hm"},
        {"role": "tool", "content": "21 °C", "tool_call_id": "call_1"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]},
    ],
)
def test_openai_dictionaries_come_back(message):
    assert ChatMessage.from_any(message).to_dict() == message


def test_a_call_may_have_its_arguments_as_an_object():
    call = {"id": "1", "function": {"name": "f", "arguments": {"ä": [1]}}}
    assert ToolCall.from_any(call) == ToolCall("1", "f", '{"ä": [1]}')


def test_an_answer_goes_on_as_a_turn():
    choice = Choice(reasoning="hm", tool_calls=[ToolCall("1", "f", "{}")])
    assert ChatMessage.from_any(choice.message.to_dict()) == choice.message
    assert choice.message.content is None


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "user", "content": None}, "lacks content"),
        ({"role": "assistant"}, "lacks content"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "belong to the assistant's messages"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "a tool call must be"),
        ({"role": "assistant", "tool_calls": "f()"}, "tool_calls of the assistant message must be a list"),
        ({"role": "tool", "content": "x", "tool_call_id": 5}, "tool_call_id of the tool message must be a text"),
    ],
)
def test_messages_that_are_refused(message, problem):
    with pytest.raises(RequestError, match=problem):
        ChatMessage.from_any(message)


# Chat options


def test_tools_in_both_shapes():
    flat = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
    assert Tool.from_any(flat) == Tool.from_any(WEATHER) == Tool("weather", parameters={"type": "object"})
    assert Tool.from_any(Tool("f", "d", strict=True).to_dict()) == Tool("f", "d", strict=True)


@pytest.mark.parametrize(
    ("options", "usable", "must_call"),
    [
        ({}, [], False),
        ({"tools": [WEATHER]}, ["weather"], False),
        ({"tools": [WEATHER], "tool_choice": "none"}, [], False),
        ({"tools": [WEATHER, Tool("f")], "tool_choice": "required"}, ["weather", "f"], True),
        ({"tools": [WEATHER, Tool("f")], "tool_choice": {"type": "function", "function": {"name": "f"}}}, ["f"], True),
        ({"tools": [WEATHER, Tool("f")], "tool_choice": {"type": "function", "name": "f"}}, ["f"], True),
    ],
)
def test_what_may_be_called(options, usable, must_call):
    chat = ChatOptions(**options)
    assert [tool.name for tool in chat.usable_tools] == usable
    assert chat.must_call is must_call


def test_templates_are_told_only_what_was_said():
    assert ChatOptions().template_variables() == {}
    told = ChatOptions(tools=[WEATHER], reasoning_effort="none").template_variables()
    assert told.pop("tools")[0]["function"]["name"] == "weather"
    assert told == {"enable_thinking": False, "thinking": False}
    assert ChatOptions(reasoning_effort="low").template_variables() == {"reasoning_effort": "low"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tools": [{"type": "function"}]}, "tools must be"),
        ({"tools": [Tool("f"), Tool("f")]}, "'f' is there twice"),
        ({"tools": [Tool("f")] * 200}, "at most 128 tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "letters, digits"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]}, "must be a JSON schema"),
        ({"tool_choice": "required"}, "without tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "must name one of"),
        ({"tools": [WEATHER], "tool_choice": "maybe"}, "tool_choice must be"),
        ({"reasoning_effort": "huge"}, "reasoning_effort must be one of"),
        ({"template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs must be out of"),
    ],
)
def test_options_that_are_refused(options, problem):
    with pytest.raises(RequestError, match=problem):
        ChatOptions(**options)


# Structured outputs


def nested(depth: int) -> dict:
    schema: dict = {}
    for _ in range(depth):
        schema = {"not": schema}
    return schema


def test_structured_outputs_as_a_dictionary():
    params = SamplingParams(structured_outputs={"json": '{"type": "array"}'})
    assert params.structured_outputs == StructuredOutputs(json={"type": "array"})
    assert StructuredOutputs.from_any(params.structured_outputs.to_dict()) == params.structured_outputs
    assert StructuredOutputs(json=True).json == {}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "must have one of json, json_object, regex, choice, grammar; but has none"),
        ({"regex": "a", "choice": ["a"]}, "not regex and choice"),
        ({"gbnf": "x"}, "not gbnf"),
        ({"json": "{"}, "json must be a JSON schema"),
        ({"json": "[" * 100_000}, "json must be a JSON schema"),
        ({"json": 5}, "json must be a JSON schema"),
        ({"json": nested(MAX_GRAMMAR_DEPTH)}, "levels deep"),
        ({"json": {"enum": ["x" * 300_000]}}, "at most 262,144 characters"),
        ({"json": {"x": {1, 2}}}, "plain data, as in JSON, not set"),
        ({"choice": []}, "choice must be a list"),
        ({"choice": "abc"}, "choice must be a list"),
        ({"choice": ["a", ""]}, "none empty"),
        ({"choice": ["x" * 1000] * 1000}, "at most 262,144 characters"),
        ({"regex": ""}, "regex must be a text"),
        ({"regex": "(" * 1000 + ")" * 1000}, "regex must have at most 64 brackets"),
        ({"grammar": 5}, "grammar must be a text"),
        ({"json_object": "yes"}, "json_object must be true"),
    ],
)
def test_structured_outputs_that_are_refused(fields, problem):
    with pytest.raises(ValueError, match=problem):
        SamplingParams(structured_outputs=fields)


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_small_plain_schema_passes_the_limits(value):
    schema = {"default": value}
    depth = MAX_GRAMMAR_DEPTH - 2
    if json.dumps(schema).count("[") + json.dumps(schema).count("{") < depth:
        assert StructuredOutputs(json=schema).json == schema
