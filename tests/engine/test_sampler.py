"""Sampling parameters: bounds, order, randomness, and penalties against the processors of transformers."""

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from vllm_nb.engine.sampling_rows import SamplingRows
from vllm_nb.kernels import reference
from vllm_nb.sampling import NEUTRAL_DEFAULTS, SamplingParams


def params(**changes) -> SamplingParams:
    return SamplingParams(**{**NEUTRAL_DEFAULTS, **changes})


def adjusted(logits, seq):
    logits, tokens = logits[None].clone(), torch.from_numpy(seq.tokens.copy())[None]
    seq.row = 0
    SamplingRows([seq], logits.device).adjust(logits, torch.tensor([len(seq)]), tokens, reference)
    return logits[0]


@pytest.fixture
def logits():
    return torch.randn(61, generator=torch.Generator().manual_seed(1)) * 3


def test_repetition_penalty_is_that_of_transformers(new_sequence, logits):
    seq = new_sequence([1, 2, 2, 3], params(repetition_penalty=1.7))
    seq.append(9)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[1, 2, 2, 3, 9]]), logits[None])[0]
    torch.testing.assert_close(adjusted(logits, seq), expected)


def test_frequency_and_presence_count_the_output_alone(new_sequence, logits):
    seq = new_sequence([1, 2], params(frequency_penalty=0.5, presence_penalty=0.25))
    for token in (7, 7, 8):
        seq.append(token)
    change = adjusted(logits, seq) - logits
    assert change[7] == pytest.approx(-0.5 * 2 - 0.25)
    assert change[8] == pytest.approx(-0.75)
    assert change.count_nonzero() == 2


def test_bias_and_minimum_length(new_sequence, logits):
    seq = new_sequence([1], params(logit_bias={3: 5.0}, min_tokens=2), stop_ids=(4, 6))
    after = adjusted(logits, seq)
    assert after[3] == pytest.approx(float(logits[3] + 5))
    assert after[[4, 6]].tolist() == [-np.inf] * 2
    seq.append(1)
    seq.append(1)
    assert torch.isfinite(adjusted(logits, seq)).all()


def test_uniforms_are_uniform_and_depend_on_seed_and_position():
    seeds, positions = np.meshgrid(np.arange(300), np.arange(300))
    drawn = reference.uniforms(torch.from_numpy(seeds.ravel()), torch.from_numpy(positions.ravel())).numpy()
    assert drawn.dtype == np.float32
    assert 0 <= drawn.min() < drawn.max() < 1
    assert len(np.unique(drawn)) > 0.99 * len(drawn)
    counts, _ = np.histogram(drawn, bins=50, range=(0, 1))
    expected = len(drawn) / 50
    assert ((counts - expected) ** 2 / expected).sum() < 90  # chi-square with 49 degrees of freedom: 1 in 3,000
    grid = drawn.reshape(300, 300)
    for own, neighbour in ((grid[:-1], grid[1:]), (grid[:, :-1], grid[:, 1:])):
        assert abs(np.corrcoef(own.ravel(), neighbour.ravel())[0, 1]) < 0.02


def test_temperature_one_draws_from_the_model(make_core, new_sequence, tiny_model):
    """The frequencies of 4,000 first tokens against the model's own probabilities."""
    core = make_core(num_blocks=64, max_num_seqs=32, budget=128)
    seqs = [new_sequence([1, 2, 3], params(seed=i), request_id=str(i), max_tokens=1) for i in range(4000)]
    for seq in seqs:
        core.scheduler.add(seq)
    while core.scheduler.has_work:
        core.step()
    counts = np.bincount([seq.tokens[-1] for seq in seqs], minlength=61)
    plan_seq = new_sequence([1, 2, 3], max_tokens=1)
    core.scheduler.add(plan_seq)
    plan = core.scheduler.schedule()
    batch, _ = core.runner.prepare(plan)
    expected = core.runner.forward(batch)[0][0].softmax(-1).numpy() * len(seqs)
    keep = expected > 5
    chi_square = ((counts[keep] - expected[keep]) ** 2 / expected[keep]).sum()
    assert chi_square < keep.sum() + 5 * np.sqrt(2 * keep.sum())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, r"temperature must be a number from 0 to 100, not -0.1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, r"top_p must be a number from 1e-06 to 1, not 0"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, r"top_k must be a whole number of at least -1, not -2"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"min_p": 2}, "min_p must be a number from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 3}, r"frequency_penalty must be a number from -2 to 2, not 3"),
        ({"presence_penalty": None}, "presence_penalty"),
        ({"seed": 2**65}, "seed"),
        ({"seed": 10**400}, "seed must be a whole number"),
        ({"temperature": float("inf")}, "temperature"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias token id"),
        ({"max_tokens": 0}, r"max_tokens must be a whole number of at least 1, not 0"),
        ({"min_tokens": 9, "max_tokens": 3}, r"min_tokens must be at most max_tokens \(3\), not 9"),
        ({"n": 0}, r"n must be a whole number from 1 to 128, not 0"),
        ({"n": True}, "n must be"),
        ({"logprobs": 21}, r"logprobs must be a whole number from 0 to 20, not 21"),
        ({"stop": [""]}, "stop must hold texts"),
        ({"stop": ["x"] * 17}, "stop must hold at most 16 texts, not 17"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {5: 101}}, r"logit_bias\[5\] must be a number from -100 to 100, not 101"),
        ({"logit_bias": {"x": 1}}, "logit_bias token id"),
        ({"logit_bias": [1]}, r"logit_bias must be an object of token ids and numbers, not \[1\]"),
        ({"stop": 5}, "stop must be a text or a list of texts, not 5"),
        ({"stop_token_ids": 5}, "stop_token_ids must be a list of token ids, not 5"),
    ],
)
def test_bad_values_name_field_value_and_range(changes, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**changes)


def test_minus_one_means_none_as_elsewhere():
    assert SamplingParams(top_k=-1, seed=-1) == SamplingParams(top_k=0, seed=None)
    assert SamplingParams(top_k=-1).with_defaults(params(top_k=40)).top_k == 0


def test_model_defaults_fill_only_what_is_unset():
    advice = params(temperature=0.6, top_p=0.9)
    filled = SamplingParams(temperature=0.2).with_defaults(advice)
    assert (filled.temperature, filled.top_p, filled.top_k) == (0.2, 0.9, 0)
    assert filled.frequency_penalty == filled.presence_penalty == 0
