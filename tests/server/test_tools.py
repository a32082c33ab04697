"""Tools and structured output, asked for by OpenAI's own client on a real model."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import BadRequestError
from openai.lib.streaming.chat import ChatCompletionStream
from pydantic import BaseModel

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "description": "The time", "parameters": None}}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
SCHEMA = WEATHER["function"]["parameters"]


def ask(live, messages=QUESTION, **options):
    options = {"temperature": 0, "max_tokens": 120} | options
    return live.openai().chat.completions.create(model="SmolLM2-135M-Instruct", messages=messages, **options)


def joined(chunks):
    """(text, calls, finish_reason) of a stream, put together as OpenAI's documents say."""
    text, calls, reason = "", [], None
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for piece in choice.delta.tool_calls or ():
                if piece.index == len(calls):
                    assert piece.id
                    calls.append([piece.function.name, ""])
                calls[piece.index][1] += piece.function.arguments
    return text, calls, reason


# Calls


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_that_is_demanded_comes_and_fits_its_schema(smollm2, choice):
    answer = ask(smollm2, tools=[WEATHER, TIME], tool_choice=choice, parallel_tool_calls=False)
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    assert message.content is None
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    jsonschema.validate(arguments, SCHEMA)
    assert arguments["city"] == "Paris"

    text, calls, reason = joined(
        ask(smollm2, tools=[WEATHER, TIME], tool_choice=choice, parallel_tool_calls=False, stream=True)
    )
    assert (text, calls, reason) == ("", [[call.function.name, call.function.arguments]], "tool_calls")


def test_the_named_tool_is_called_whatever_the_question(smollm2):
    named = {"type": "function", "function": {"name": "get_time"}}
    answer = ask(smollm2, tools=[WEATHER, TIME], tool_choice=named)
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["get_time"]


def test_each_of_n_choices_calls(smollm2):
    answer = ask(
        smollm2, tools=[WEATHER], tool_choice="required", n=3, temperature=1, seed=1, parallel_tool_calls=False
    )
    assert len(answer.choices) == 3
    for choice in answer.choices:
        jsonschema.validate(json.loads(choice.message.tool_calls[0].function.arguments), SCHEMA)


def test_without_a_choice_the_model_may_answer_and_with_none_it_must(smollm2):
    for choice in ("auto", "none"):
        answer = ask(smollm2, tools=[WEATHER], tool_choice=choice, max_tokens=20)
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].message.content


def test_a_result_goes_back(smollm2):
    call = ask(smollm2, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False).choices[0].message
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "It is 21 degrees and sunny."}
    answer = ask(smollm2, [*QUESTION, call, result], tools=[WEATHER], tool_choice="none", max_tokens=30)
    assert answer.choices[0].message.content


def test_cut_off_by_max_tokens_a_call_is_a_beginning_and_the_reason_says_so(smollm2):
    whole = ask(smollm2, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    arguments = whole.choices[0].message.tool_calls[0].function.arguments
    cut = ask(smollm2, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=25)
    assert cut.choices[0].finish_reason == "length"
    begun = cut.choices[0].message.tool_calls[0].function.arguments
    assert begun
    assert arguments.startswith(begun)


# Schemas


class Person(BaseModel):
    name: str
    age: int


def test_openai_parses_a_pydantic_model(smollm2):
    messages = [{"role": "user", "content": "Ann is 12 years old. Who is she? Answer in JSON."}]
    answer = smollm2.openai().chat.completions.parse(
        model="SmolLM2-135M-Instruct", messages=messages, response_format=Person, temperature=0, max_tokens=100
    )
    assert answer.choices[0].message.parsed == Person(name="Ann", age=12)
    with smollm2.openai().chat.completions.stream(
        model="SmolLM2-135M-Instruct", messages=messages, response_format=Person, temperature=0, max_tokens=100
    ) as stream:
        assert isinstance(stream, ChatCompletionStream)
        assert stream.get_final_completion().choices[0].message.parsed == Person(name="Ann", age=12)


def test_any_json_object(smollm2):
    answer = ask(smollm2, response_format={"type": "json_object"}, stop="}", max_tokens=60)
    assert answer.choices[0].message.content.startswith("{")


@pytest.mark.parametrize(
    ("outputs", "fits"),
    [
        ({"choice": ["sun", "rain", "Schnee ❄"]}, lambda text: text in ("sun", "rain", "Schnee ❄")),
        ({"regex": r"[A-Z]{2}/\d{3}"}, lambda text: text[:2].isupper() and text[2] == "/" and text[3:].isdigit()),
        ({"grammar": 'start: "x" ("=" NUMBER)\nNUMBER: /[0-9]{1,3}/'}, lambda text: text.startswith("x=")),
        ({"json": {"enum": [1, [2], {"a": None}]}}, lambda text: json.loads(text) in (1, [2], {"a": None})),
    ],
)
def test_structured_outputs(smollm2, outputs, fits):
    for options in ({}, {"temperature": 1.5, "seed": 3}):
        answer = ask(smollm2, extra_body={"structured_outputs": outputs, "min_tokens": 50}, **options)
        assert answer.choices[0].finish_reason == "stop"
        assert fits(answer.choices[0].message.content)


def test_completions_take_them_too(smollm2):
    answer = smollm2.openai().completions.create(
        model="SmolLM2-135M-Instruct",
        prompt="The weather is",
        extra_body={"structured_outputs": {"choice": [" fine", " bad"]}},
    )
    assert answer.choices[0].text in (" fine", " bad")


def test_logprobs_are_the_models_own_and_bias_counts_within_the_grammar(smollm2):
    outputs = {"structured_outputs": {"choice": ["a", "b", "c"]}}
    free = ask(smollm2, extra_body=outputs, logprobs=True, top_logprobs=5)
    entry = free.choices[0].logprobs.content[0]
    assert entry.logprob < 0
    assert all(other.logprob > entry.logprob for other in entry.top_logprobs)  # none of them was allowed
    ids = smollm2.host.engine.tokenizer.encode("c")
    biased = ask(smollm2, extra_body=outputs, logit_bias={str(ids[0]): 100})
    assert biased.choices[0].message.content == "c"


SCALARS = st.sampled_from(
    [
        {"type": "integer", "minimum": 0, "maximum": 99},
        {"type": "boolean"},
        {"enum": ["red", "green", 3]},
        {"const": "x"},
    ]
)
SCHEMAS = st.recursive(
    SCALARS | st.just({"type": "string", "maxLength": 5}),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=2).map(lambda options: {"anyOf": options})
        | inner.map(lambda items: {"type": "array", "items": items, "maxItems": 2})
        | st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=2).map(
            lambda properties: {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        )
    ),
    max_leaves=4,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SCHEMAS, st.integers(0, 9))
def test_answers_validate_whatever_the_schema(smollm2, schema, seed):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    answer = ask(smollm2, response_format=form, temperature=1.2, seed=seed, max_tokens=300)
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content), schema)


# What cannot be served


def test_reasoning_fields_are_taken_by_a_model_without(smollm2):
    answer = ask(
        smollm2, max_tokens=5, reasoning_effort="low", extra_body={"chat_template_kwargs": {"enable_thinking": True}}
    )
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


HARD = [
    {"regex": "(a|b)*a(a|b){60}"},
    {"regex": "(x+x+)+y"},
    {"regex": "((a{1,100}){1,100}){1,100}"},
    {"regex": "(.*a){60}"},
    {"grammar": "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(40)) + '\nA40: "x"'},
    {"grammar": "start: a0\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(60)) + '\na60: "x"'},
    {"json": {"properties": {f"k{i}": {"properties": {f"j{k}": {} for k in range(50)}} for i in range(150)}}},
    {"json": {"type": "array", "minItems": 10**9, "items": {"type": "array", "minItems": 10**9}}},
    {"json": {"$ref": "https://example.com/schema.json"}},
    {"choice": [f"{i}" * 200 for i in range(1000)]},
]


def test_what_is_hard_is_answered_soon_and_others_are_served_meanwhile(smollm2):
    """Each with an answer or a 400, none with a failure."""

    def attempt(outputs):
        started = time.monotonic()
        with suppress(BadRequestError):
            ask(smollm2, extra_body={"structured_outputs": outputs}, max_tokens=4)
        return time.monotonic() - started

    with ThreadPoolExecutor(len(HARD)) as pool:
        hard = pool.map(attempt, HARD)
        started = time.monotonic()
        assert ask(smollm2, max_tokens=4).choices[0].message.content
        assert time.monotonic() - started < 15
        assert max(hard) < 20
    smollm2.eventually_empty()
