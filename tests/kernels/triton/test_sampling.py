"""Drawing tokens without a sort, interpreted, against the reference, which sorts."""

from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton import knobs

from vllm_nb.kernels import reference
from vllm_nb.kernels import triton as kernels

VOCAB = 2500  # some blocks, and not a multiple of one
EDGE = 2e-6 if knobs.runtime.interpret else 2e-5  # a GPU's powers are approximate


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("vllm_nb.kernels.triton.sampling"), "BLOCK", 2048)
        yield


def arguments(rows, data):
    floats = {
        "temperature": st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        "top_p": st.sampled_from([1e-6, 0.3, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05, 1.0]),
        "uniform": st.floats(0, 1, exclude_max=True, width=32),
    }
    drawn = {name: torch.tensor([data.draw(s, name) for _ in range(rows)]) for name, s in floats.items()}
    top_k = torch.tensor([data.draw(st.sampled_from([0, 1, 3, 40, VOCAB, 10**6])) for _ in range(rows)]).int()
    return drawn["temperature"], top_k, drawn["top_p"], drawn["min_p"], drawn["uniform"]


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_tokens_are_those_of_a_sort(data):
    """Draws at the edge of a token's share may differ by rounding: then the next kept token is taken."""
    rows = data.draw(st.integers(1, 3))
    generator = torch.Generator(torch.get_default_device()).manual_seed(data.draw(st.integers(0, 10**6)))
    logits = torch.randn(rows, VOCAB, generator=generator) * data.draw(st.sampled_from([0.1, 3.0, 20.0]))
    if data.draw(st.booleans(), "equals"):
        logits = logits.round()
    temperature, top_k, top_p, min_p, uniform = arguments(rows, data)
    ours = kernels.sample(logits.clone(), temperature, top_k, top_p, min_p, uniform)
    theirs = reference.sample(logits, temperature, top_k, top_p, min_p, uniform)
    for row in (ours != theirs).nonzero().flatten().tolist():
        nearby = [
            int(reference.sample(*(a[row : row + 1] for a in (logits, temperature, top_k, top_p + dp, min_p, u)))[0])
            for dp in (-EDGE, 0, EDGE)
            for u in ((uniform - EDGE).clamp(min=0), uniform, (uniform + EDGE).clamp(max=1 - 2e-7))
        ]
        assert int(ours[row]) in nearby


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_row_gives_minus_one(bad, temperature):
    logits = torch.randn(2, VOCAB)
    logits[0, 1200] = bad
    if bad == -torch.inf:
        logits[0] = bad
    one = torch.ones(2)
    tokens = kernels.sample(logits, one * temperature, torch.zeros(2).int(), one, one * 0, one * 0.5)
    assert tokens[0] == -1
    assert tokens[1] >= 0


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), num_top=st.integers(0, 6), equals=st.booleans())
def test_logprobs(seed, num_top, equals):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    logits = torch.randn(2, VOCAB, generator=generator) * 4
    if equals:
        logits = logits.round()
    ids = torch.randint(0, VOCAB, (2,), generator=generator).int()
    ours = kernels.token_logprobs(logits, ids, num_top)
    theirs = reference.token_logprobs(logits, ids, num_top)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_penalties_are_those_of_the_reference():
    """Some rows of the logits, with histories in another order, and a token that stands there 3,000 times."""
    rng = np.random.default_rng(0)
    tokens = torch.tensor(rng.integers(0, VOCAB, (5, 4000)).astype(np.int32))
    tokens[2, :3000] = 7
    tokens[0, 900:1000] = tokens[0, 0]
    rows, histories = torch.tensor([3, 0, 2, 5]), torch.tensor([2, 4, 0, 1])
    prompt_lens, lengths = torch.tensor([3000, 1100, 1, 2]), torch.tensor([3090, 1100, 1500, 7])
    amounts = torch.tensor([[1.3, 0.7, 1.0, 1.1], [0.4, 0.0, -0.5, 0.0], [0.0, 0.6, 0.2, 0.0]])
    logits = torch.randn(6, VOCAB)
    expected = logits.double()
    arguments = rows, tokens, histories, prompt_lens, lengths, *amounts
    reference.penalize(expected, *arguments)
    kernels.penalize(logits, *arguments)
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=1e-5)


def test_random_numbers_are_those_of_the_reference():
    seeds = torch.tensor(np.random.default_rng(1).integers(0, 2**64, 200, dtype=np.uint64).view(np.int64))
    positions = torch.arange(200) * 977
    assert torch.equal(kernels.uniforms(seeds, positions), reference.uniforms(seeds, positions))
