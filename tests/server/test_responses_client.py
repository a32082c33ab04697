"""The Responses API by the official client against the real model, and what it makes of every kind of item."""

import json

import openai
import pytest
from pydantic import BaseModel

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


def test_a_tool_is_called_and_its_result_understood(client):
    """Whole and streamed; the call is demanded, and so fits its schema."""
    schema = WEATHER["parameters"] | {"additionalProperties": False}
    ask = {"model": MODEL, "temperature": 0, "max_output_tokens": 80, "tools": [WEATHER | {"parameters": schema}]}
    demand = {"tool_choice": "required", "parallel_tool_calls": False, "input": "What is the weather in Paris?"}
    answer = client.responses.create(**ask, **demand)
    (call,) = answer.output
    assert (answer.status, call.type, call.name) == ("completed", "function_call", "get_weather")
    assert list(json.loads(call.arguments)) == ["city"]
    events = list(client.responses.create(**ask, **demand, stream=True))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments == events[-1].response.output[0].arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain, 12 degrees"}
    after = client.responses.create(**ask, input=[result], previous_response_id=answer.id, tool_choice="none")
    assert after.output[0].type == "message"
    assert after.usage.input_tokens > answer.usage.input_tokens


class Rating(BaseModel):
    stars: int
    good: bool


def test_an_answer_by_schema(client):
    parsed = client.responses.parse(**GREEDY | {"max_output_tokens": 80}, text_format=Rating)
    assert isinstance(parsed.output_parsed, Rating)
    with client.responses.stream(**GREEDY | {"max_output_tokens": 80}, text_format=Rating) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed


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
