"""What an answer is to be: how it is told to the engine, and the text as a value."""

import json
from dataclasses import dataclass
from typing import Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from vllm_nb.client.base import Query
from vllm_nb.client.completion import Completion
from vllm_nb.client.schema import AnswerError, Shape
from vllm_nb.errors import RequestError
from vllm_nb.outputs import Choice
from vllm_nb.sampling import StructuredOutputs


class City(BaseModel):
    name: str
    people: int = Field(ge=0)


@dataclass
class Point:
    x: float
    y: float = 0.0


class Row(TypedDict):
    kind: Literal["a", "b"]


DICTIONARY = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("schema", "text", "value", "wrong"),
    [
        (City, '{"name": "Ulm", "people": 9}', City(name="Ulm", people=9), '{"name": "Ulm", "people": -9}'),
        (Point, '{"x": 1.5}', Point(1.5), '{"y": 1}'),
        (Row, '{"kind": "a"}', {"kind": "a"}, '{"kind": "c"}'),
        (list[int], "[1, 2]", [1, 2], "[1"),
        (DICTIONARY, '{"n": 3}', {"n": 3}, '{"n": "three"}'),
    ],
)
def test_types(schema, text, value, wrong):
    shape = Shape.of(schema)
    jsonschema.validate(json.loads(text), shape.outputs.json)
    with pytest.raises((jsonschema.ValidationError, json.JSONDecodeError)):
        jsonschema.validate(json.loads(wrong), shape.outputs.json)
    assert shape.value(text) == value
    with pytest.raises(AnswerError, match="the answer is not what was asked for: ") as caught:
        shape.value(wrong)
    assert "errors.pydantic.dev" not in str(caught.value)


def test_choices_and_patterns():
    assert Shape.choice("yes", "no").outputs == StructuredOutputs(choice=("yes", "no"))
    assert Shape.choice("yes", "no").value(" no ") == "no"
    with pytest.raises(AnswerError, match="'maybe' is none of yes, no"):
        Shape.choice("yes", "no").value("maybe")
    assert Shape.regex(r"\d+").value("12") == "12"


class Holder:
    socket: int


class Held(TypedDict):
    holder: Holder


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("City", "not the text 'City'"),
        (5, "not 5"),
        (Holder, f"not {Holder!r}"),
        (Held, f"not {Held!r}: Unable to generate pydantic-core schema for {Holder!r}"),
    ],
)
def test_what_is_no_schema(schema, message):
    with pytest.raises(TypeError) as caught:
        Shape.of(schema)
    assert str(caught.value) == f"schema must be a type that pydantic knows or a JSON schema, {message}"


def test_one_schema_is_enough():
    with pytest.raises(ValueError, match="schema and structured_outputs say the same"):
        Query.chat("x", {"schema": City, "structured_outputs": {"regex": "a"}})


def test_the_value_of_a_completion():
    query = Query.chat("x", {"schema": City, "n": 2})
    assert query.wire["structured_outputs"]["json"]["required"] == ["name", "people"]
    good = Choice(0, '{"name": "Ulm", "people": 9}', finish_reason="stop")
    answer = Completion(choices=[good, Choice(1, '{"name": "Bonn", "people": 1}', finish_reason="stop")])
    answer.of(query, None)
    assert answer.value == City(name="Ulm", people=9)
    assert [value.name for value in answer.values] == ["Ulm", "Bonn"]
    cut_off = "the answer was cut off by max_tokens or the context's end before it was whole; its text is in .text"
    with pytest.raises(AnswerError, match=f"^{cut_off}$"):
        Completion(choices=[Choice(0, '{"na', finish_reason="length")]).of(query, None).value  # noqa: B018
    with pytest.raises(AnswerError, match="was interrupted before it was whole"):
        Completion(choices=[Choice(0, '{"na', finish_reason="abort")]).of(query, None).value  # noqa: B018
    with pytest.raises(RequestError, match=r"no value was asked for: give schema=\.\.\."):
        Completion(choices=[good]).of(Query.chat("x", {}), None).value  # noqa: B018


def test_of_another_server(openai_server):
    import vllm_nb

    openai_server.replies.append({"content": '{"name": "Ulm", "people": 9}'})
    with vllm_nb.connect(openai_server.url, token="key") as client:
        assert client.chat("Which city?", schema=City).value.people == 9
        assert openai_server.requests[-1]["response_format"]["json_schema"]["schema"]["title"] == "City"
        with pytest.raises(AnswerError, match="Invalid JSON"):
            client.chat("Which city?", schema=City).value  # noqa: B018
