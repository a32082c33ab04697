"""Rotary tables against the functions transformers computes its frequencies with."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vllm_nb.errors import ModelLoadError
from vllm_nb.layers.rotary import cos_sin_table

CPU = torch.device("cpu")
THETA = 50000.0
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def table(scaling=None, *, head_dim=96, max_len=512, max_position=2048):
    return cos_sin_table(THETA, head_dim, max_len, scaling=scaling, max_position=max_position, device=CPU)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 256},
        {"rope_type": "llama3", **LLAMA3, "factor": 32.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        {"rope_type": "yarn", "factor": 2.5},
        {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 512},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5},
        {"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0},
        {"rope_type": "yarn", "factor": 16.0, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1.0, "beta_slow": 1.0, "truncate": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("head_dim", [64, 96])
def test_every_scaling_equals_transformers(scaling, head_dim):
    config = LlamaConfig(
        head_dim=head_dim, max_position_embeddings=2048, rope_parameters={"rope_theta": THETA, **scaling}
    )
    if scaling["rope_type"] == "default":
        frequencies, amplitude = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        frequencies, amplitude = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, CPU)
    angles = torch.outer(torch.arange(512, dtype=torch.float64), frequencies.double())
    expected = torch.cat((angles.cos(), angles.sin()), -1) * amplitude
    ours = table(scaling, head_dim=head_dim)
    assert ours.dtype == torch.float32
    # The frequencies of transformers are float32: off by 1e-7 of an angle of up to 511.
    torch.testing.assert_close(ours.double(), expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(ours[:16].double(), expected[:16], atol=5e-6, rtol=0)


def test_factors_divide_the_frequencies():
    """A GGUF of Llama 3.1 carries the outcome of its scaling as divisors."""
    factors = torch.linspace(1, 8, 48)
    ours = table({"rope_type": "factors", "factors": factors.tolist()})
    angles = torch.arange(512).double()[:, None] * (THETA ** -(torch.arange(0, 96, 2).double() / 96)) / factors.double()
    torch.testing.assert_close(ours.double(), torch.cat((angles.cos(), angles.sin()), -1), atol=1e-6, rtol=0)


def test_a_long_table_is_exact():
    last = cos_sin_table(10000.0, 4, 100_001, max_position=10, device=CPU)[-1].tolist()
    expected = [torch.tensor(100_000 * f, dtype=torch.float64) for f in (1.0, 0.01)]
    assert last == pytest.approx([*(a.cos().item() for a in expected), *(a.sin().item() for a in expected)], abs=1e-6)


@pytest.mark.parametrize("max_len", [1, 511, 512, 513, 1300])
def test_a_table_of_any_length_has_its_positions_in_order(max_len):
    """It is computed some hundred positions at a time."""
    angles = np.arange(max_len)[:, None] * THETA ** -(np.arange(0, 96, 2) / 96)
    expected = np.concatenate((np.cos(angles), np.sin(angles)), 1)
    np.testing.assert_allclose(table(max_len=max_len).numpy(), expected, atol=1e-7)


def test_dynamic_scaling_beyond_the_original_context_is_refused():
    with pytest.raises(ModelLoadError, match=r"dynamic NTK .* up to the 256 tokens .* not 257: lower max_model_len"):
        table({"rope_type": "dynamic", "factor": 2.0}, max_len=257, max_position=256)


def test_unknown_scaling_names_what_is_supported():
    with pytest.raises(ModelLoadError, match=r"'longrope' is not supported; supported are default, .*yarn"):
        table({"rope_type": "longrope"})


def test_missing_key_is_named():
    with pytest.raises(ModelLoadError, match=r"'llama3' lacks the key 'low_freq_factor'"):
        table({"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0})
