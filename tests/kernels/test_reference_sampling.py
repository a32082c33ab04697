"""Sampling and log-probabilities against a row-by-row NumPy version."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nb.kernels import reference


def sample(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, uniform=0.5) -> list[int]:
    """The kernel, with scalars for all rows or one value a row."""
    logits = torch.as_tensor(logits)

    def row(value, dtype):
        return torch.as_tensor(value, dtype=dtype).expand(len(logits)).contiguous()

    arguments = (temperature, top_k, top_p, min_p, uniform)
    kinds = (torch.float32, torch.int32, torch.float32, torch.float32, torch.float32)
    tokens = reference.sample(logits, *map(row, arguments, kinds))
    assert tokens.dtype == torch.int32
    return tokens.tolist()


def sample_row(logits, temperature, top_k, top_p, min_p, uniform) -> int:
    """The definition, token by token: sort, keep, draw."""
    logits = np.asarray(logits, np.float64)
    if not np.isfinite(logits.max()):
        return -1
    if temperature == 0:
        return int(np.flatnonzero(logits == logits.max())[0])
    probs = np.exp((logits - logits.max()) / np.float64(np.float32(temperature)))
    if 0 < top_k < len(probs):
        probs[probs < np.sort(probs)[-top_k]] = 0
    if top_p < 1:
        mass, wanted = 0.0, np.float64(np.float32(top_p)) * probs.sum()
        for least in np.sort(probs)[::-1]:
            mass += least
            if mass >= wanted:
                break
        probs[probs < least] = 0
    probs[probs < np.float64(np.float32(min_p)) * probs.max()] = 0
    target, mass = np.float64(np.float32(uniform)) * probs.sum(), 0.0
    for token, p in enumerate(probs):
        mass += p
        if mass > target:
            return token
    raise AssertionError("uniform is below 1")


row_parameters = st.tuples(
    st.sampled_from([0.0, 0.05, 0.7, 1.0, 3.0]),
    st.sampled_from([0, 1, 2, 5, 500]),
    st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    st.floats(0, 1, exclude_max=True, width=32),
)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(row_parameters, min_size=1, max_size=6), vocab=st.integers(1, 60), seed=st.integers(0, 10_000))
def test_sample_follows_the_definition_and_no_row_depends_on_another(rows, vocab, seed):
    logits = np.random.default_rng(seed).normal(0, 3, (len(rows), vocab)).astype(np.float32)
    together = sample(logits, *map(list, zip(*rows, strict=True)))
    assert together == [sample_row(logits[i], *rows[i]) for i in range(len(rows))]
    assert together == [sample(logits[i : i + 1], *rows[i])[0] for i in range(len(rows))]


def test_a_large_vocabulary_is_drawn_the_same_alone_and_in_a_batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 262_144, generator=generator)
    uniform = torch.rand(4, generator=generator)
    together = sample(logits, 1.0, [0, 50, 0, 0], [1.0, 1.0, 0.9, 1.0], uniform=uniform)
    for i, (top_k, top_p) in enumerate([(0, 1.0), (50, 1.0), (0, 0.9), (0, 1.0)]):
        assert sample(logits[i : i + 1], 1.0, top_k, top_p, uniform=uniform[i : i + 1]) == [together[i]]


def test_draws_have_the_frequencies_of_the_softmax():
    logits = torch.tensor([2.0, 0.5, -1.0, 1.0])
    expected = (logits / 0.8).softmax(0)
    uniform = (torch.arange(4000) + 0.5) / 4000
    counts = np.bincount(sample(logits.expand(4000, 4), 0.8, uniform=uniform), minlength=4)
    np.testing.assert_allclose(counts / 4000, expected, atol=1e-3)


def test_greedy_takes_the_lowest_id_of_equals():
    assert sample([[1.0, 5.0, 5.0, 5.0]], temperature=0.0) == [1]
    assert sample(torch.full((2, 1000), 0.25, dtype=torch.bfloat16), temperature=0.0) == [0, 0]


def test_equals_of_the_last_token_kept_stay():
    logits = np.log([[0.4, 0.2, 0.2, 0.2]])
    for keep in ({"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}):
        drawn = {sample(logits, uniform=u, **keep)[0] for u in np.linspace(0, 0.999, 50)}
        assert drawn == {0, 1, 2, 3}, keep


def test_order_is_top_k_then_top_p():
    # On its own top_p 0.5 keeps two tokens; of the two that top_k leaves, the first has 4/7 and is enough.
    logits = np.log([[0.4, 0.3, 0.2, 0.1]])
    drawn = {sample(logits, top_k=2, top_p=0.5, uniform=u)[0] for u in np.linspace(0, 0.999, 50)}
    assert drawn == {0}


def test_top_p_stops_as_soon_as_its_mass_is_reached():
    logits = np.log([[0.5, 0.25, 0.25]])
    assert {sample(logits, top_p=0.5, uniform=u)[0] for u in np.linspace(0, 0.999, 50)} == {0}


def test_extreme_uniform_numbers_and_temperatures():
    logits = np.array([[-np.inf, 1.0, 2.0, -np.inf]], np.float32)
    assert sample(logits, uniform=0.0) == [1]
    assert sample(logits, uniform=np.nextafter(np.float32(1), np.float32(0))) == [2]
    assert sample(logits, temperature=1e-30, uniform=0.0) == [2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_row_gives_minus_one_and_leaves_the_others(temperature):
    nan, inf = float("nan"), float("inf")
    logits = [[0.0, 9.0, 0.0], [nan, 1.0, 2.0], [-inf, -inf, -inf], [inf, 0.0, 0.0], [0.0, -inf, 99.0]]
    assert sample(logits, temperature) == [1, -1, -1, -1, 2]


def test_token_logprobs():
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([0, 17, 299, 5, 5], dtype=torch.int32)
    logprob, rank, top_ids, top_logprobs = reference.token_logprobs(logits, ids, 4)
    exact = logits.double().numpy()
    exact = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    order = np.argsort(-exact, axis=-1)
    np.testing.assert_allclose(logprob, exact[np.arange(5), ids], atol=1e-5)
    assert rank.tolist() == [int(np.flatnonzero(order[i] == ids[i].item())[0]) + 1 for i in range(5)]
    assert top_ids.tolist() == order[:, :4].tolist()
    np.testing.assert_allclose(top_logprobs, np.take_along_axis(exact, order[:, :4], -1), atol=1e-5)


def test_token_logprobs_of_equals_and_of_forbidden_tokens():
    logits = torch.tensor([[1.0, 3.0, 3.0, -torch.inf, 3.0, -torch.inf]])
    logprob, rank, top_ids, top_logprobs = reference.token_logprobs(logits, torch.tensor([4]), 6)
    assert top_ids.tolist() == [[1, 2, 4, 0, 3, 5]]
    assert rank.tolist() == [1]
    assert logprob.item() == top_logprobs[0, 2].item()
    assert top_logprobs[0, 4:].tolist() == [-torch.inf, -torch.inf]


def test_token_logprobs_without_alternatives():
    _, _, top_ids, top_logprobs = reference.token_logprobs(torch.zeros(2, 3), torch.tensor([0, 2]), 0)
    assert top_ids.shape == top_logprobs.shape == (2, 0)
