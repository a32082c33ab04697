"""The official client against the real model: what it sends is understood, what it gets has OpenAI's shape. What needs
many tokens and no sense is asked of the tiny model."""

import json
import math

import openai
import pytest

MODEL = "SmolLM2-135M-Instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
GREEDY = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 6}
BABBLE = {"model": "tiny-llama", "messages": QUESTION, "temperature": 1.0, "max_tokens": 40, "seed": 3}


@pytest.fixture(scope="module")
def answer(client):
    return client.chat.completions.create(**GREEDY)


def test_models(client):
    (card,) = client.models.list().data
    assert (card.id, card.object) == (client.models.retrieve(card.id).id, "model")
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.models.retrieve("gpt-4")


def test_a_whole_answer(answer, smollm2):
    (choice,) = answer.choices
    assert answer.object == "chat.completion"
    assert "Paris" in choice.message.content
    assert (choice.message.role, choice.index) == ("assistant", 0)
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    engine = smollm2.host.engine
    assert usage.prompt_tokens == len(engine.encode(QUESTION))
    timings = answer.timings
    assert 0 <= timings["queued_s"] <= timings["ttft_s"] <= timings["total_s"]
    assert timings["decode_tokens_per_s"] > 0


def test_a_streamed_answer_is_the_whole_one_in_pieces(client, answer):
    chunks = list(client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    *pieces, last = chunks
    assert last.choices == []
    assert last.usage.completion_tokens == answer.usage.completion_tokens
    assert last.timings["total_s"] > 0
    assert all(chunk.usage is None for chunk in pieces)
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[0].choices[0].delta.content == ""
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == answer.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in pieces]
    assert reasons == [None] * (len(reasons) - 1) + [answer.choices[0].finish_reason]
    assert pieces[-1].choices[0].delta.content is None


def test_the_stream_on_the_wire(smollm2):
    """Byte for byte what a client without a library must parse; no usage unless asked for, timings in the last."""
    with (
        smollm2.client() as client,
        client.stream("POST", "/v1/chat/completions", json={**GREEDY, "stream": True}) as r,
    ):
        assert r.headers["content-type"] == "text/event-stream; charset=utf-8"
        text = r.read().decode()
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    bodies = [json.loads(event.removeprefix("data: ")) for event in events]
    assert all("usage" not in body for body in bodies)
    assert [("timings" in body) for body in bodies] == [False] * (len(bodies) - 1) + [True]
    assert bodies[0]["id"] == r.headers["x-request-id"]
    head = {"id": bodies[0]["id"], "object": "chat.completion.chunk", "created": bodies[0]["created"], "model": MODEL}
    delta = {"role": "assistant", "content": ""}
    assert bodies[0] == head | {
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}],
    }


def test_several_choices(tiny_client):
    options = BABBLE | {"n": 3}
    whole = tiny_client.chat.completions.create(**options)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = {choice.index: "" for choice in whole.choices}
    roles = []
    for chunk in tiny_client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.index] if choice.delta.role else []
    assert sorted(roles) == [0, 1, 2]
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert len(set(texts.values())) > 1


def test_a_seed_repeats_and_other_seeds_differ(tiny_client):
    def text(seed):
        options = BABBLE | {"seed": seed}
        return tiny_client.chat.completions.create(**options).choices[0].message.content

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_logprobs_and_their_bytes(client):
    options = GREEDY | {"logprobs": True, "top_logprobs": 3}
    choice = client.chat.completions.create(**options).choices[0]
    entries = choice.logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries if entry.token != "<|im_end|>").decode() == (
        choice.message.content
    )
    for entry in entries:
        top = entry.top_logprobs
        assert len(top) == 3
        assert top[0].token == entry.token  # greedy takes the likeliest
        assert [other.logprob for other in top] == sorted((other.logprob for other in top), reverse=True)
        assert sum(math.exp(other.logprob) for other in top) <= 1 + 1e-3
    streamed = []
    for chunk in client.chat.completions.create(**options, stream=True):
        streamed += [entry for choice in chunk.choices if choice.logprobs for entry in choice.logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]
    alone = client.chat.completions.create(**GREEDY, logprobs=True).choices[0].logprobs.content
    assert all(entry.top_logprobs == [] for entry in alone)


def test_the_models_own_end_is_no_stop_of_the_request(client):
    """Which token it was is nobody's business; one that was asked for is told."""
    options = GREEDY | {"messages": [{"role": "user", "content": "Say only: yes"}]}
    choice = client.chat.completions.create(**options | {"max_tokens": 200}).choices[0]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", None)
    end = client.chat.completions.create(**options, extra_body={"return_token_ids": True}).choices[0].token_ids[-1]
    asked = client.chat.completions.create(**options, extra_body={"stop_token_ids": [end]}).choices[0]
    assert (asked.finish_reason, asked.stop_reason) == ("stop", end)


def test_a_stop_text_is_cut_off(tiny_client):
    full = tiny_client.chat.completions.create(**BABBLE).choices[0].message.content
    stop = full[len(full) // 2 :][:2]
    options = BABBLE | {"stop": [stop, "unrelated"]}
    choice = tiny_client.chat.completions.create(**options).choices[0]
    assert choice.message.content == full[: full.index(stop)]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    pieces = [chunk.choices[0].delta.content for chunk in tiny_client.chat.completions.create(**options, stream=True)]
    assert "".join(piece or "" for piece in pieces) == full[: full.index(stop)]


def test_a_repeated_prompt_comes_from_the_cache(client):
    long = [{"role": "user", "content": "Summarise this. " + "The quick brown fox jumps over the lazy dog. " * 8}]
    first = client.chat.completions.create(model=MODEL, messages=long, max_tokens=1).usage
    second = client.chat.completions.create(model=MODEL, messages=long, max_tokens=1).usage
    assert first.prompt_tokens == second.prompt_tokens > 80
    assert second.prompt_tokens_details.cached_tokens >= second.prompt_tokens - 16


def test_limits_and_our_own_fields(client):
    extra = {"ignore_eos": True, "min_tokens": 2, "top_k": 1, "min_p": 0.0, "return_token_ids": True, "not_a_field": 1}
    options = GREEDY | {"temperature": 1, "max_tokens": 99, "max_completion_tokens": 5}
    answer = client.chat.completions.create(**options, extra_body=extra)
    assert answer.usage.completion_tokens == len(answer.choices[0].token_ids) == 5
    assert answer.choices[0].finish_reason == "length"
    assert len(answer.prompt_token_ids) == answer.usage.prompt_tokens
    biased = client.chat.completions.create(**GREEDY | {"max_tokens": 3}, logit_bias={"216": 100})
    assert biased.choices[0].message.content.strip() == ""  # token 216 is a space


NOTHING = {"stop": None, "n": None, "seed": None, "tools": [], "response_format": {"type": "text"}}


def test_content_in_parts_and_null_for_not_given(client, answer):
    parts = [{"type": "text", "text": QUESTION[0]["content"]}]
    again = client.chat.completions.create(
        **GREEDY | {"messages": [{"role": "user", "content": parts}]},
        extra_body=NOTHING,
    )
    assert again.choices[0].message.content == answer.choices[0].message.content


def test_plain_completions(client):
    options = {"model": MODEL, "temperature": 0, "max_tokens": 3}
    prompts = ["The capital of France is", "One, two, three,"]
    both = client.completions.create(**options, prompt=prompts, n=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in both.choices]
    assert "Paris" in texts[0]
    assert "four" in texts[2]
    assert (texts[0], texts[2]) == (texts[1], texts[3])
    pieces = dict.fromkeys(range(4), "")
    for chunk in client.completions.create(**options, prompt=prompts, n=2, stream=True):
        assert chunk.object == "text_completion"
        for choice in chunk.choices:
            pieces[choice.index] += choice.text
    assert list(pieces.values()) == texts


def test_completions_of_token_ids_with_logprobs(client, smollm2):
    ids = smollm2.host.engine.tokenizer.encode("The capital of France is")
    options = {"model": MODEL, "temperature": 0, "max_tokens": 4, "logprobs": 2}
    (choice,) = client.completions.create(**options, prompt=ids).choices
    (same,) = client.completions.create(**options, prompt=[ids]).choices
    assert choice.text == same.text
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text
    assert [choice.text[at:].startswith(token) for at, token in zip(logprobs.text_offset, logprobs.tokens, strict=True)]
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert top[token] == logprob == max(top.values())


def test_the_async_client_runs_many_at_once(smollm2):
    import asyncio

    async def ask(client, number):
        prompt = [{"role": "user", "content": f"Say the number {number}."}]
        stream = await client.chat.completions.create(model=MODEL, messages=prompt, max_tokens=4, stream=True)
        return [chunk async for chunk in stream]

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{smollm2.url}/v1", api_key="test-key", timeout=60) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(8)))

    answers = asyncio.run(main())
    assert all(chunks[-1].choices[0].finish_reason for chunks in answers)
    smollm2.eventually_empty()
