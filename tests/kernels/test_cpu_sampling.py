"""Sampling and log-probabilities against the reference backend."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nb.kernels import cpu, reference


def arguments(rows, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, uniform=0.5):
    """Scalars for all rows or one value a row, as tensors."""
    kinds = (torch.float32, torch.int32, torch.float32, torch.float32, torch.float32)
    values = (temperature, top_k, top_p, min_p, uniform)
    return [torch.as_tensor(v, dtype=kind).expand(rows).contiguous() for v, kind in zip(values, kinds, strict=True)]


parameters = st.tuples(
    st.sampled_from([0.0, 0.05, 0.7, 1.0, 3.0]),
    st.sampled_from([0, 1, 2, 40, 500, 10**6]),
    st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    st.floats(0, 1, exclude_max=True, width=32),
)


@settings(max_examples=150, deadline=None)
@given(
    vocabulary=st.sampled_from([1, 5, 16, 33, 1000, 20000]),
    rows=st.lists(parameters, min_size=1, max_size=4),
    spread=st.sampled_from([0.0, 0.1, 3.0, 30.0]),
    steps=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_draws_what_the_reference_draws(vocabulary, rows, spread, steps, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (len(rows), vocabulary)) * spread
    if steps:  # many equals
        logits = np.round(logits)
    logits = torch.from_numpy(logits.astype(np.float32))
    logits[:, rng.random(vocabulary) < 0.1] = -math.inf
    values = [torch.tensor(column) for column in zip(*rows, strict=True)]
    values = [v.to(kind) for v, kind in zip(values, (torch.float32, torch.int32, *[torch.float32] * 3), strict=True)]
    ours, theirs = cpu.sample(logits, *values), reference.sample(logits, *values)
    for row in (ours != theirs).nonzero().flatten().tolist():
        assert is_a_close_call(logits[row], [v[row].item() for v in values], ours[row].item()), (row, ours, theirs)


def is_a_close_call(logits, values, token) -> bool:
    """Whether uniform or a cut within 1e-5 of the given one makes the reference draw this token."""
    temperature, top_k, top_p, min_p, uniform = values
    for cut in (0, -1e-5, 1e-5):
        for shift in (0, -1e-5, 1e-5):
            nearby = arguments(
                1, temperature, top_k, top_p + cut, max(0, min_p * (1 + cut)), min(max(uniform + shift, 0), 1)
            )
            if reference.sample(logits[None], *nearby).item() == token:
                return True
    # what is so unlikely that one of the two calls it impossible, and the other does not cut off
    probabilities = (logits.double() / temperature).softmax(0)
    kept = (top_k == 0 or (logits > logits[token]).sum() < top_k) and top_p == 1 and min_p == 0
    return kept and uniform < 1e-5 and 0 < probabilities[: token + 1].sum().item() < 1e-5


def test_rows_that_cannot_be_sampled_give_minus_one():
    logits = torch.randn(4, 20000)
    logits[0, 19999] = torch.nan
    logits[1] = -math.inf
    logits[2, 5] = math.inf
    for temperature in (0.0, 1.0):
        tokens = cpu.sample(logits, *arguments(4, temperature, 50, 0.9))
        assert tokens[:3].tolist() == [-1, -1, -1]
        assert 0 <= tokens[3] < 20000


def test_greedy_takes_the_lowest_of_equals():
    logits = torch.zeros(2, 262144)
    logits[0, [100000, 5000, 262143]] = 3.0
    assert cpu.sample(logits, *arguments(2, 0.0)).tolist() == [5000, 0]


@pytest.mark.parametrize("top_k", [1, 5, 100])
def test_cuts_among_logits_of_very_different_size(top_k):
    """Bins that hold almost everything have to be cut again and again."""
    logits = -torch.logspace(-6, 6, 4000).flip(0)[None].float()
    for temperature in (0.01, 1.0, 1000.0):
        for uniform in (0.0, 0.3, 0.9999):
            values = arguments(1, temperature, top_k, 1.0, 0.0, uniform)
            ours, theirs = cpu.sample(logits, *values).item(), reference.sample(logits, *values).item()
            assert ours == theirs or is_a_close_call(logits[0], [v[0].item() for v in values], ours)


def test_frequencies_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125])
    uniform = (torch.arange(8000) + 0.5) / 8000
    tokens = cpu.sample(probabilities.log().expand(8000, 4).contiguous(), *arguments(8000, uniform=uniform))
    assert torch.equal(tokens.bincount(), torch.tensor([4000, 2000, 1000, 1000]))


@pytest.mark.parametrize("vocabulary", [7, 33, 20000])
@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
def test_logprobs_equal_the_reference(vocabulary, num_top):
    logits = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(1)) * 4
    logits[1] = logits[1].round()  # equals
    logits[2, 3] = -math.inf
    ids = torch.randint(0, vocabulary, (5,), generator=torch.Generator().manual_seed(2)).int()
    num_top = min(num_top, vocabulary)
    ours, theirs = cpu.token_logprobs(logits, ids, num_top), reference.token_logprobs(logits.double(), ids, num_top)
    torch.testing.assert_close(ours[0].double(), theirs[0], atol=3e-6, rtol=1e-6)
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[2])
    torch.testing.assert_close(ours[3].double(), theirs[3], atol=3e-6, rtol=1e-6)


def test_parameters_of_any_layout_and_type():
    logits = torch.randn(4, 1000)
    plain = arguments(4, torch.tensor([0.5, 1.0, 0.0, 2.0]), 40, 0.9, 0.01, torch.tensor([0.1, 0.9, 0.5, 0.3]))
    odd = [torch.stack([x, x], 1)[:, 0].to(torch.float64 if x.is_floating_point() else torch.int64) for x in plain]
    assert torch.equal(cpu.sample(logits, *odd), cpu.sample(logits, *plain))
    with pytest.raises(ValueError, match=r"sampling 4 rows needs parameters for each, not \[4, 4, 3, 4, 4\]"):
        cpu.sample(logits, *plain[:2], plain[2][:3].clone(), *plain[3:])
    spread = [torch.stack([x, x], 1)[:, 0] for x in plain]
    assert torch.equal(cpu.sample(logits, *spread), cpu.sample(logits, *plain))
