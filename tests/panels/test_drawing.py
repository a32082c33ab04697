"""What the tokens panel says of sampling filters, against the processors of transformers and real draws."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vllm_nb.api import Engine, Prompt
from vllm_nb.engine.sampler import shape_at, shapes_of
from vllm_nb.notebook.panels.drawing import alternatives
from vllm_nb.outputs import TokenLogprob
from vllm_nb.sampling import NEUTRAL_DEFAULTS, SamplingParams

VOCABULARY, SHOWN = 40, 12


def entry_of(logits: torch.Tensor, params: SamplingParams) -> TokenLogprob:
    entropy, log_mass = shape_at([column.numpy() for column in shapes_of(logits[None], [params])], 0)
    top = logits.log_softmax(-1).topk(SHOWN)
    likeliest = [TokenLogprob(i, str(i), p) for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]
    return TokenLogprob(0, "0", 0.0, 1, likeliest, entropy, log_mass)


def warped(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Probabilities after the filters, as transformers applies them."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    return warpers(torch.zeros(1, 1, dtype=torch.long), logits[None].double())[0].softmax(-1)


@settings(deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31),
    st.floats(0.3, 2.5),
    st.sampled_from([0, 1, 5, 30]),
    st.sampled_from([1.0, 0.9, 0.5]),
    st.sampled_from([0.0, 0.05, 0.3]),
)
def test_filters_are_those_of_transformers(seed, temperature, top_k, top_p, min_p) -> None:
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, logprobs=SHOWN)
    params = params.with_defaults(SamplingParams(**NEUTRAL_DEFAULTS))
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    expected = warped(logits, params)
    for each in alternatives(entry_of(logits, params), sampling):
        assert bool(each.cut) == (expected[each.token_id] == 0), each
        if each.exact:
            assert each.q == pytest.approx(float(expected[each.token_id]), abs=1e-5)
        else:
            assert 0 < each.q <= float(expected[each.token_id]) + 1e-5


def test_entropy_is_that_of_the_whole_distribution() -> None:
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(4))
    logits[3] = -torch.inf
    p = logits.double().softmax(-1).numpy()
    p = p[p > 0]
    entry = entry_of(logits, SamplingParams(**NEUTRAL_DEFAULTS, logprobs=3))
    assert entry.entropy == pytest.approx(-(p * np.log(p)).sum(), abs=1e-5)


def test_where_filters_cannot_be_told_nothing_is_claimed() -> None:
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(5))
    penalised = SamplingParams(**{**NEUTRAL_DEFAULTS, "repetition_penalty": 1.2}, logprobs=3)
    assert {each.q for each in alternatives(entry_of(logits, penalised), {"top_k": 2})} == {None}
    greedy = SamplingParams(**{**NEUTRAL_DEFAULTS, "temperature": 0.0}, logprobs=3)
    found = alternatives(entry_of(logits, greedy), {"temperature": 0.0})
    assert [(each.q, each.cut) for each in found[:2]] == [(1.0, ""), (0.0, "temperature")]


def test_an_engine_draws_as_the_panel_says(tiny_model_path) -> None:
    """The first token of many requests: what was cut is never drawn, and the rest about as often as it says."""
    sampling = {"temperature": 0.8, "top_k": 12, "top_p": 0.8, "min_p": 0.02}
    params = SamplingParams(**sampling, max_tokens=1, logprobs=20, n=100, seed=5)
    with Engine(tiny_model_path) as engine:
        outputs = [engine.generate(params, Prompt(text="hello")) for _ in range(1)]
        more = [engine.generate(SamplingParams(**sampling, max_tokens=1, n=100, seed=1000 * i), Prompt(text="hello"))
                for i in range(1, 8)]  # fmt: skip
    drawn = Counter(choice.token_ids[0] for output in (*outputs, *more) for choice in output.choices)
    total = sum(drawn.values())
    said = {each.token_id: each for each in alternatives(outputs[0].choices[0].logprobs[0], sampling)}
    assert {each.cut for each in said.values()} >= {"", "top_p", "top_k"}
    assert all(not said[token].cut for token in drawn)
    for token, each in said.items():
        assert drawn[token] / total == pytest.approx(each.q, abs=0.06)
