"""Python functions as tools: what a model is told of them, how they are called, and the rounds until an answer."""

import json
from typing import Annotated, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

import vllm_nb
from vllm_nb.client.tools import PythonTool, Toolbox
from vllm_nb.errors import RequestError
from vllm_nb.messages import ToolCall


class Place(BaseModel):
    lat: float
    lon: float


def depth(of: str, unit: Literal["m", "km"] = "m", at: Place | None = None) -> float:
    """How deep a water
    is.

    Args:
        of (str): its name, as on a map
        unit: of the answer

    Returns:
        the depth
    """
    return {"m": 3688.0, "km": 3.688}[unit] + (0 if at is None else at.lat)


def tide(hours: Annotated[list[int], Field(description="full hours")]):
    """:param hours: not this text"""
    raise ZeroDivisionError(f"no moon at {hours}")


def call(name: str, **arguments) -> ToolCall:
    return ToolCall("c1", name, json.dumps(arguments))


def test_what_the_model_is_told():
    tool = PythonTool(depth).tool
    assert (tool.name, tool.description) == ("depth", "How deep a water is.")
    assert tool.parameters["properties"]["of"] == {"type": "string", "description": "its name, as on a map"}
    assert tool.parameters["properties"]["unit"]["enum"] == ["m", "km"]
    assert tool.parameters["properties"]["unit"]["description"] == "of the answer"
    assert tool.parameters["required"] == ["of"]
    jsonschema.validate({"of": "sea", "at": {"lat": 1, "lon": 2}}, tool.parameters)
    for wrong in ({}, {"of": 1}, {"of": "sea", "unit": "ft"}, {"of": "sea", "else": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, tool.parameters)
    assert PythonTool(tide).tool.parameters["properties"]["hours"]["description"] == "full hours"


def test_calls_are_checked_and_arguments_become_what_the_hints_say():
    box = Toolbox([depth, tide])
    assert box.run(call("depth", of="sea")).text == "3688.0"
    assert box.run(call("depth", of="sea", at={"lat": 1, "lon": 2})).text == "3689.0"
    for wrong, message in [
        (call("depth"), "Error: wrong arguments for depth: of: Field required"),
        (call("depth", of="sea", unit="ft"), "Error: wrong arguments for depth: unit: Input should be 'm' or 'km'"),
        (ToolCall("c1", "depth", '{"of": '), "Error: wrong arguments for depth: all of it: Invalid JSON"),
        (call("dive"), "Error: there is no tool 'dive'; there are depth, tide"),
        (call("tide", hours=[1]), "Error: ZeroDivisionError: no moon at [1]"),
    ]:
        result = box.run(wrong)
        assert result.failed
        assert result.text.startswith(message)
        assert result.message["tool_call_id"] == "c1"


@pytest.mark.parametrize(
    ("returned", "text"), [("a text", "a text"), ({"ä": [1]}, '{"ä": [1]}'), (None, "null"), ({1, 2}, "{1, 2}")]
)
def test_results_are_text_or_json(returned, text):
    def give():
        return returned

    assert Toolbox([give]).run(ToolCall("", "give", "")).text == text


def test_long_results_are_cut():
    def long() -> str:
        return "x" * 200_000

    assert Toolbox([long]).run(call("long")).text.endswith("x ... (200,000 characters in all)")


def test_functions_that_are_no_tools():
    def many(*args: int) -> None: ...

    async def later() -> None: ...

    def odd(thing: "Nowhere") -> None: ...  # noqa: F821

    with pytest.raises(RequestError, match="tools take named parameters only; many has \\*args"):
        PythonTool(many).tool  # noqa: B018
    with pytest.raises(RequestError, match="tools must be plain functions; later is none"):
        PythonTool(later)
    with pytest.raises(RequestError, match="tools must be plain functions; 5 is none"):
        PythonTool(5)
    with pytest.raises(RequestError, match="the hints of the tool odd can't be read: name 'Nowhere'"):
        PythonTool(odd).tool  # noqa: B018


def asks_for(*calls: ToolCall) -> dict:
    return {"content": None, "tool_calls": [{"index": i, **each.to_dict()} for i, each in enumerate(calls)]}


@pytest.fixture
def client(openai_server):
    with vllm_nb.connect(openai_server.url, token="key") as client:
        yield client
    openai_server.replies.clear()


def test_rounds_until_an_answer(client, openai_server):
    openai_server.replies += [
        asks_for(call("depth", of="sea"), ToolCall("c2", "tide", '{"hours": [3]}')),
        asks_for(ToolCall("c3", "depth", '{"of": "lake", "unit": "km"}')),
        {"content": "Deep."},
    ]
    allowed = []

    def confirm(asked: ToolCall) -> bool:
        allowed.append(asked.name)
        return len(allowed) < 3

    answer = client.run_tools("How deep?", [depth, tide], confirm=confirm, temperature=0)
    assert answer.text == "Deep."
    assert allowed == ["depth", "tide", "depth"]
    sent = openai_server.requests[-1]
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["depth", "tide"]
    assert sent["temperature"] == 0
    assert [(m["role"], m.get("content")) for m in sent["messages"]] == [
        ("user", "How deep?"),
        ("assistant", None),
        ("tool", "3688.0"),
        ("tool", "Error: ZeroDivisionError: no moon at [3]"),
        ("assistant", None),
        ("tool", "Error: the user did not allow this call"),
    ]
    assert [m["tool_call_id"] for m in sent["messages"] if m["role"] == "tool"] == ["c1", "c2", "c3"]


def test_rounds_are_bounded(client, openai_server):
    openai_server.replies += [asks_for(call("depth", of="sea"))] * 3
    with pytest.raises(RequestError, match="the model still calls tools after 2 rounds: stopped"):
        client.run_tools("How deep?", [depth], max_rounds=2)


def test_a_plain_chat_gives_the_calls(client, openai_server):
    openai_server.replies.append(asks_for(call("depth", of="sea")))
    answer = client.chat("How deep?", tools=[depth])
    assert answer.tool_calls == [call("depth", of="sea")]
    assert answer.finish_reason == "tool_calls"
