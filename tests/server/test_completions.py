"""/v1/completions by the official client: what it echoes, scores, ranks and streams."""

import json

import pytest

from vllm_nb.server.streaming import REQUEST_ID

MODEL = "SmolLM2-135M-Instruct"
PROMPT = "The capital of France is"
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 4}
BABBLE = {"model": "tiny-llama", "prompt": "abc", "max_tokens": 12, "seed": 5}
PARALLEL = ("tokens", "token_logprobs", "top_logprobs", "text_offset")  # lists of one entry a token


def joined(chunks) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    return texts


def streamed_prompts(chunks) -> dict[int, list]:
    """The log-probabilities of prompts, by the choice that they came with."""
    found: dict[int, list] = {}
    for chunk in chunks:
        if hasattr(chunk, "prompt_logprobs"):
            found.setdefault(chunk.choices[0].index, []).extend(chunk.prompt_logprobs)
    return found


def test_the_prompt_is_echoed_before_every_answer(client, smollm2):
    prompts = [PROMPT, "One, two, three,"]
    plain = client.completions.create(**GREEDY, prompt=prompts, n=2).choices
    echoed = client.completions.create(**GREEDY, prompt=prompts, n=2, echo=True).choices
    expected = [prompts[i // 2] + choice.text for i, choice in enumerate(plain)]
    assert [choice.text for choice in echoed] == expected
    streamed = client.completions.create(**GREEDY, prompt=prompts, n=2, echo=True, stream=True)
    assert joined(streamed) == dict(enumerate(expected))
    ids = smollm2.host.engine.tokenizer.encode(PROMPT)
    assert client.completions.create(**GREEDY, prompt=ids, echo=True).choices[0].text == expected[0]


def test_a_scored_text_has_the_logprobs_it_was_generated_with(client):
    """An echo without new tokens computes in one prefill what generating computed token by token."""
    options = GREEDY | {"max_tokens": 2, "prompt": PROMPT}
    generated = client.completions.create(**options, logprobs=2, echo=True).choices[0]
    tokens, scores = generated.logprobs.tokens, generated.logprobs.token_logprobs
    assert scores[0] is generated.logprobs.top_logprobs[0] is None
    assert "".join(tokens) == generated.text
    for at, token in zip(generated.logprobs.text_offset, tokens, strict=True):
        assert generated.text[at:].startswith(token)
    again = client.completions.create(**GREEDY | {"max_tokens": 0}, prompt=generated.text, logprobs=2, echo=True)
    scored = again.choices[0]
    assert (scored.text, scored.logprobs.tokens) == (generated.text, tokens)
    assert scored.logprobs.token_logprobs[1:] == pytest.approx(scores[1:], abs=0.05)
    assert (scored.finish_reason, again.usage.completion_tokens) == ("length", 0)
    assert not hasattr(again, "prompt_logprobs")


@pytest.mark.parametrize("prompt", [[5], "x" * 300], ids=["one token", "several steps"])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_a_streamed_echo_has_the_same_logprobs(tiny_client, prompt, max_tokens):
    options = BABBLE | {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": max_tokens}
    options["extra_body"] = {"prompt_logprobs": 1}
    answer = tiny_client.completions.create(**options)
    whole, num_prompt = answer.choices[0], answer.usage.prompt_tokens
    chunks = list(tiny_client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert joined(chunks) == {0: whole.text}
    parts = [choice.logprobs for chunk in chunks for choice in chunk.choices]
    for name in PARALLEL:
        values = [value for part in parts for value in getattr(part, name)]
        assert values == getattr(whole.logprobs, name)
        assert len(values) == num_prompt + max_tokens
    assert streamed_prompts(chunks) == {0: answer.prompt_logprobs}
    assert len(answer.prompt_logprobs) == num_prompt
    assert chunks[-1].usage.completion_tokens == max_tokens


def test_every_choice_has_its_prompts_logprobs_as_in_vllm(tiny_client):
    options = BABBLE | {"prompt": [[5], [6, 7, 8]], "n": 2, "extra_body": {"prompt_logprobs": 2}}
    answer = tiny_client.completions.create(**options)
    one, same, three, again = (choice.prompt_logprobs for choice in answer.choices)
    assert (one, three) == (same, again)
    assert one == [None] == answer.prompt_logprobs
    assert [entry and next(iter(entry)) for entry in three] == [None, "7", "8"]
    for entry in three[1:]:
        scores = list(entry.values())
        assert {1, 2} <= {score["rank"] for score in scores}
        assert max(scores, key=lambda score: score["logprob"])["rank"] == 1
        assert set(scores[0]) == {"logprob", "rank", "decoded_token"}
    streamed = streamed_prompts(tiny_client.completions.create(**options, stream=True))
    assert streamed.keys() == {0, 2}
    assert streamed[0] == [None]
    expected = [entry and next(iter(entry.values()))["logprob"] for entry in three]
    assert [entry and entry["logprob"] for entry in streamed[2]] == pytest.approx(expected)


def test_an_echo_that_is_aborted_before_its_prompt_was_computed(tiny):
    body = BABBLE | {"prompt": [5, 6, 7], "echo": True, "logprobs": 1, "stream": True}
    engine = tiny.host.engine
    engine.pause()
    try:
        with tiny.client() as http, http.stream("POST", "/v1/completions", json=body) as response:
            assert http.post("/inspect/abort", json={"request_id": response.headers[REQUEST_ID]}).json()["aborted"]
            chunk = json.loads(next(response.iter_lines()).removeprefix("data: "))
    finally:
        engine.resume()
    assert chunk["choices"][0]["finish_reason"] == "abort"
    assert [len(chunk["choices"][0]["logprobs"][name]) for name in PARALLEL] == [3] * 4


def test_best_of_gives_the_likeliest(tiny_client):
    every = tiny_client.completions.create(**BABBLE, n=4, logprobs=0)
    means = {c.text: sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs) for c in every.choices}
    assert len(means) == 4
    best = tiny_client.completions.create(**BABBLE, n=2, best_of=4)
    assert [choice.text for choice in best.choices] == sorted(means, key=means.get, reverse=True)[:2]
    assert [(choice.index, choice.logprobs) for choice in best.choices] == [(0, None), (1, None)]
    assert best.usage.completion_tokens == every.usage.completion_tokens  # all four are paid for


def test_sixteen_tokens_unless_told_otherwise(tiny_client):
    options = {name: value for name, value in BABBLE.items() if name != "max_tokens"}
    extra = {"ignore_eos": True}
    assert tiny_client.completions.create(**options, extra_body=extra).usage.completion_tokens == 16
    endless = tiny_client.completions.create(**options, extra_body=extra | {"max_tokens": None}, stream=True)
    assert sum(1 for _, chunk in zip(range(40), endless, strict=False) if chunk.choices[0].finish_reason is None) == 40
    endless.close()
