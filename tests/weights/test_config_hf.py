"""config.json in all its spellings, against what transformers makes of the same file."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from vllm_nb.errors import ModelLoadError
from vllm_nb.models.config import ModelConfig
from vllm_nb.models.registry import SUPPORTED
from vllm_nb.weights import config_hf
from vllm_nb.weights.config_gguf import ARCHITECTURES
from vllm_nb.weights.config_hf import read_folder

LLAMA = {
    "model_type": "llama", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}  # fmt: skip
QWEN = LLAMA | {"max_window_layers": 3, "sliding_window": 64}
GEMMA3 = LLAMA | {"model_type": "gemma3_text", "head_dim": 32, "sliding_window": 32, "hidden_act": None}
LLAMA3_SCALING = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
LOCAL_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama 2, few fields": {key: value for key, value in LLAMA.items() if "max" not in key and "kv" not in key},
    "llama, null fields": LLAMA | {"head_dim": None, "num_key_value_heads": None, "rope_scaling": None},
    "llama 3.1": LLAMA | {"rope_theta": 500000.0, "rope_scaling": LLAMA3_SCALING, "eos_token_id": [1, 8, 9]},
    "llama, new spelling": LLAMA | {"rope_parameters": LLAMA3_SCALING | {"rope_theta": 500000.0}},
    "llama, linear": LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama, dynamic": LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama, biases": LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 32},
    "llama, partial": LLAMA | {"partial_rotary_factor": 0.5},
    "mistral 0.1": LLAMA | {"model_type": "mistral", "sliding_window": 256},
    "mistral 0.2": LLAMA | {"model_type": "mistral", "sliding_window": None, "rope_theta": 1000000.0},
    "mistral, few fields": {"model_type": "mistral"} | {
        key: LLAMA[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    } | {"num_attention_heads": 16},
    "mistral nemo": LLAMA | {"model_type": "mistral", "head_dim": 32},
    "qwen2": QWEN | {"model_type": "qwen2", "use_sliding_window": False, "rope_theta": 1000000.0},
    "qwen2, windows": QWEN | {"model_type": "qwen2", "use_sliding_window": True},
    "qwen2.5, yarn": QWEN | {
        "model_type": "qwen2",
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    },
    "qwen3": QWEN | {"model_type": "qwen3", "use_sliding_window": False},
    "qwen3, layer types": QWEN | {
        "model_type": "qwen3", "use_sliding_window": True, "head_dim": 64, "attention_bias": True,
        "layer_types": ["sliding_attention", "full_attention"] * 4,
    },
    "gemma3": GEMMA3,
    "gemma3, old spelling": GEMMA3 | {
        "rope_theta": 1000000.0, "rope_local_base_freq": 20000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window_pattern": 4,
        "query_pre_attn_scalar": 168, "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
    "gemma3, new spelling": GEMMA3 | {
        "rope_parameters": {
            "sliding_attention": LOCAL_ROPE,
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0},
        },
        "layer_types": ["sliding_attention", "full_attention"] * 4, "tie_word_embeddings": False,
    },
}  # fmt: skip


def write(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(params=CONFIGS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ModelConfig, Any]:
    """Our configuration and transformers'."""
    write(tmp_path, CONFIGS[request.param])
    return read_folder(tmp_path)[0], AutoConfig.from_pretrained(tmp_path)


def test_sizes(both: tuple[ModelConfig, Any]) -> None:
    ours, theirs = both
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.architecture == {"mistral": "llama", "gemma3_text": "gemma3"}.get(theirs.model_type, theirs.model_type)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.hidden_size == theirs.hidden_size
    assert ours.intermediate_size == theirs.intermediate_size
    assert ours.num_layers == theirs.num_hidden_layers
    assert ours.num_heads == theirs.num_attention_heads
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == head_dim
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    yarn = ours.rope.scaling is not None and ours.rope.scaling["rope_type"] == "yarn"
    assert ours.max_position == theirs.max_position_embeddings * (4 if yarn else 1)


def test_switches(both: tuple[ModelConfig, Any]) -> None:
    ours, theirs = both
    family = theirs.model_type
    bias = getattr(theirs, "attention_bias", False)
    assert ours.attention_bias == (family == "qwen2" or bias)
    assert ours.attention_output_bias == (family != "qwen2" and bias)
    assert ours.mlp_bias == getattr(theirs, "mlp_bias", False)
    assert ours.activation == ("gelu_tanh" if family == "gemma3_text" else "silu")
    scale = theirs.query_pre_attn_scalar**-0.5 if family == "gemma3_text" else ours.head_dim**-0.5
    assert (ours.attention_scale or ours.head_dim**-0.5) == scale
    assert ours.attention_softcap == getattr(theirs, "attn_logit_softcapping", None)
    assert ours.final_softcap == getattr(theirs, "final_logit_softcapping", None)


def test_windows(both: tuple[ModelConfig, Any]) -> None:
    ours, theirs = both
    window = getattr(theirs, "sliding_window", None) if theirs.model_type != "llama" else None
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * theirs.num_hidden_layers
    expected = [window if kind == "sliding_attention" else None for kind in kinds]
    layers = ours.sliding_layers or (True,) * ours.num_layers
    assert [ours.sliding_window if slides else None for slides in layers] == expected


def test_rope(both: tuple[ModelConfig, Any]) -> None:
    ours, theirs = both
    parameters = theirs.rope_parameters
    if theirs.model_type == "gemma3_text":
        assert ours.rope.local_theta == parameters["sliding_attention"]["rope_theta"]
        parameters = parameters["full_attention"]
    else:
        assert ours.rope.local_theta is None
    assert ours.rope.theta == parameters["rope_theta"]
    share = parameters.get("partial_rotary_factor")
    assert ours.rope.rotary_dim == (ours.head_dim * share if share else None)
    ignored = ("rope_theta", "type", "partial_rotary_factor")
    expected = {key: value for key, value in parameters.items() if key not in ignored}
    assert ours.rope.scaling == (None if expected["rope_type"] == "default" else expected)


def test_both_formats_and_the_models_know_the_same_architectures() -> None:
    assert {family.architecture for family in config_hf.FAMILIES.values()} == set(SUPPORTED)
    assert set(ARCHITECTURES) == set(SUPPORTED)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in LLAMA.items() if key != name}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (without("hidden_size"), "'hidden_size' in .* is missing"),
        (without("model_type"), "'model_type' in .* is missing"),
        (LLAMA | {"model_type": "mamba"}, "'mamba', which is not supported; supported are gemma3, gemma3_text"),
        (LLAMA | {"num_hidden_layers": -1}, "'num_hidden_layers' .* from 1 to 4096, not -1"),
        (LLAMA | {"num_hidden_layers": 10**12}, "'num_hidden_layers' .* from 1 to 4096"),
        (LLAMA | {"vocab_size": "big"}, "'vocab_size' .* not 'big'"),
        (LLAMA | {"vocab_size": True}, "'vocab_size' .* not True"),
        (LLAMA | {"rms_norm_eps": "small"}, "'rms_norm_eps' .* number, not 'small'"),
        (LLAMA | {"rms_norm_eps": float("nan")}, "'rms_norm_eps' .* number, not nan"),
        (LLAMA | {"hidden_act": "relu"}, "'hidden_act' .* one of silu, gelu_pytorch_tanh, not 'relu'"),
        (LLAMA | {"num_key_value_heads": 3}, "4 attention heads cannot share 3 key-value heads"),
        (LLAMA | {"head_dim": 15}, "15 rotary dimensions are not an even number within the head's 15"),
        (LLAMA | {"partial_rotary_factor": 2.0}, "32 rotary dimensions are not an even number within the head's 16"),
        (LLAMA | {"attention_bias": "yes"}, "'attention_bias' .* true or false, not 'yes'"),
        (LLAMA | {"rope_theta": 0}, "'rope_theta' .* greater than 0"),
        (LLAMA | {"rope_theta": 10**400}, "'rope_theta' .* must be a number"),
        (LLAMA | {"rope_scaling": "yarn"}, "'rope_scaling' .* must be an object"),
        (LLAMA | {"rope_scaling": {"type": "longrope"}}, r"'rope_scaling\.rope_type' .* not 'longrope'"),
        (LLAMA | {"rope_scaling": {"type": "yarn"}}, r"'rope_scaling\.factor' in .* is missing"),
        (LLAMA | {"rope_scaling": LLAMA3_SCALING | {"factor": []}}, r"'rope_scaling\.factor' .* number, not \[\]"),
        (LLAMA | {"eos_token_id": -1}, "'eos_token_id' .* token id"),
        (QWEN | {"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["x"]}, "'layer_types' .* of 8"),
        (GEMMA3 | {"use_bidirectional_attention": True}, "'use_bidirectional_attention' .* embedding models"),
        (GEMMA3 | {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
         r"'rope_parameters\.sliding_attention\.rope_type' .* must be 'default'"),
        ({"model_type": "gemma3"}, "'text_config' in .* is missing"),
        ({"model_type": "gemma3", "text_config": {"model_type": "llama4"}}, "'llama4', which is not supported"),
    ],
)  # fmt: skip
def test_faults_name_field_and_file(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=message) as caught:
        read_folder(write(tmp_path, config))
    assert str(tmp_path / "config.json") in str(caught.value)
