"""GGUF metadata that the real models do not have, its faults, and split files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_nb.errors import ModelLoadError
from vllm_nb.kernels.quant import dequantize
from vllm_nb.weights.checkpoint import Checkpoint, open_checkpoint

Write = Callable[..., Path]


@pytest.fixture
def opened(
    tmp_path: Path, write_gguf: Write, llama_metadata: dict[str, Any], llama_tensors: dict[str, np.ndarray]
) -> Callable[..., Checkpoint]:
    """opened(metadata, architecture=..., tensors=...): the tiny llama with changes; None takes an entry away."""

    def opened(
        changes: dict[str, Any], architecture: str = "llama", tensors: dict[str, Any] | None = None
    ) -> Checkpoint:
        metadata = {key: value for key, value in (llama_metadata | changes).items() if value is not None}
        path = write_gguf(tmp_path / "x.gguf", architecture, metadata, llama_tensors | (tensors or {}))
        return open_checkpoint(path)

    return opened


YARN = {"{arch}.rope.scaling.type": "yarn", "{arch}.rope.scaling.factor": 4.0}


@pytest.mark.parametrize(
    ("metadata", "scaling"),
    [
        ({"{arch}.rope.scaling.factor": 8.0}, {"rope_type": "linear", "factor": 8.0}),
        ({"{arch}.rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"{arch}.rope.scaling.type": "linear", "{arch}.rope.scaling.factor": 1.0}, None),
        ({"{arch}.rope.scaling.type": "none", "{arch}.rope.scaling.factor": 4.0}, None),
        (YARN, {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0}),
        (
            YARN | {"{arch}.rope.scaling.original_context_length": 64, "{arch}.rope.scaling.attn_factor": 2.0},
            {
                "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                "original_max_position_embeddings": 64, "attention_factor": pytest.approx(2 * 1.138629436),
            },
        ),
    ],
)  # fmt: skip
def test_rope_scaling(metadata: dict[str, Any], scaling: Any, opened: Callable[..., Checkpoint]) -> None:
    config = opened(metadata).config
    assert config.rope.scaling == scaling
    assert config.max_position == (256 if "{arch}.rope.scaling.original_context_length" in metadata else 128)


GEMMA3 = {"{arch}.attention.sliding_window": 16, "{arch}.attention.key_length": 16}


def test_gemma3_variants(opened: Callable[..., Checkpoint]) -> None:
    config = opened(GEMMA3 | {"{arch}.block_count": 8}, "gemma3").config
    assert config.sliding_layers == (True, True, True, True, True, False, True, True)
    assert (config.rope.theta, config.rope.local_theta) == (10000.0, 10000.0)
    config = opened(GEMMA3 | {"{arch}.attention.sliding_window_pattern": 2, "{arch}.block_count": 4}, "gemma3").config
    assert config.sliding_layers == (True, False, True, False)
    flags = {"{arch}.attention.sliding_window_pattern": [False, True], "{arch}.block_count": 2}
    assert opened(GEMMA3 | flags, "gemma3").config.sliding_layers == (False, True)
    own = {"{arch}.rope.freq_base_swa": 5000.0, "{arch}.final_logit_softcapping": 30.0}
    config = opened(GEMMA3 | own, "gemma3").config
    assert (config.rope.local_theta, config.final_softcap, config.attention_softcap) == (5000.0, 30.0, None)
    assert opened(GEMMA3 | {"{arch}.block_count": 62}, "gemma3").config.attention_scale == 16**-0.5  # 64 / 4 heads
    config = opened({}, "gemma3").config
    assert (config.sliding_window, config.sliding_layers, config.rope.local_theta) == (None, None, None)


def test_other_metadata(opened: Callable[..., Checkpoint]) -> None:
    config = opened({"{arch}.attention.head_count_kv": None, "{arch}.attention.head_count": [4]}).config
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 4, 16)
    assert config.tie_word_embeddings
    assert config.vocab_size == 4
    config = opened({}, tensors={"output.weight": np.ones((4, 64), np.float32)}).config
    assert not config.tie_word_embeddings
    biases = {f"blk.0.{name}.bias": np.ones(64, np.float32) for name in ("attn_q", "attn_output", "ffn_gate")}
    config = opened({}, tensors=biases).config
    assert (config.attention_bias, config.attention_output_bias, config.mlp_bias) == (True, True, True)


def test_generation_advice(opened: Callable[..., Checkpoint]) -> None:
    tokens = ["<s>", "</s>", "<|eot_id|>", "<|im_end|>"]
    assert opened({"tokenizer.ggml.tokens": tokens}).generation.eos_token_ids == (1, 2, 3)
    named = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.eom_token_id": 1}
    assert opened(named).generation.eos_token_ids == (1, 3)
    sampling = {"general.sampling.temp": 0.5, "general.sampling.top_k": 20, "general.sampling.penalty_repeat": 1.5}
    advised = opened(sampling).generation.sampling
    assert advised == {"temperature": 0.5, "top_k": 20, "repetition_penalty": 1.5}
    assert isinstance(advised["top_k"], int)


@pytest.mark.parametrize(
    ("metadata", "architecture", "message"),
    [
        ({}, "mamba", r"architecture 'mamba', which is not supported; supported are llama, qwen2, qwen3, gemma3"),
        ({"{arch}.expert_count": 8}, "llama", "'llama.expert_count' .* mixture of experts"),
        ({"{arch}.block_count": None}, "qwen3", "'qwen3.block_count' in .*x.gguf is missing"),
        ({"{arch}.block_count": 4_000_000_000}, "gemma3", "'gemma3.block_count' .* from 1 to 4096, not 4000000000"),
        ({"{arch}.embedding_length": "many"}, "llama", "'llama.embedding_length' .* whole number .* not 'many'"),
        ({"{arch}.attention.layer_norm_rms_epsilon": 0.0}, "llama", "'llama.attention.layer_norm_rms.*greater"),
        ({"{arch}.attention.head_count_kv": 3}, "llama", "4 attention heads cannot share 3 key-value heads"),
        ({"{arch}.attention.value_length": 8}, "llama", "'llama.attention.value_length' .* must equal"),
        ({"{arch}.feed_forward_length": [96, 64]}, "llama", "'llama.feed_forward_length' .* differs between layers"),
        ({"{arch}.rope.dimension_count": 15}, "qwen2", "15 rotary dimensions are not an even number"),
        ({"{arch}.rope.scaling.type": "su", "{arch}.rope.scaling.factor": 2.0}, "llama", "linear or yarn, not 'su'"),
        (YARN | {"{arch}.rope.scaling.yarn_ext_factor": 0.0}, "llama", "yarn_ext_factor' .* must be 1"),
        (GEMMA3 | {"{arch}.attention.sliding_window_pattern": [True] * 5}, "gemma3", "true or false for each of 1"),
        ({"general.sampling.top_p": 7.0}, "llama", "sampling advice in .* out of range: top_p"),
        ({"tokenizer.ggml.eos_token_id": "x"}, "llama", "'tokenizer.ggml.eos_token_id'"),
    ],
)  # fmt: skip
def test_faults_name_field_and_file(
    metadata: dict[str, Any], architecture: str, message: str, opened: Callable[..., Checkpoint]
) -> None:
    with pytest.raises(ModelLoadError, match=message) as caught:
        opened(metadata, architecture)
    assert "x.gguf" in str(caught.value)


def test_faults_of_tensors(opened: Callable[..., Checkpoint]) -> None:
    checkpoint = opened({}, tensors={"blk.0.attn_q.weight": np.ones((60, 64), np.float32)})
    with pytest.raises(ModelLoadError, match=r"q_proj\.weight' in .*x\.gguf has 60 rows, not 64"):
        checkpoint.tensor("model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(ModelLoadError, match=r"no tensor 'model\.layers\.9\.nothing'"):
        checkpoint.tensor("model.layers.9.nothing")
    with pytest.raises(ModelLoadError, match=r"8 positive factors in 'rope_freqs\.weight'"):
        opened({}, tensors={"rope_freqs.weight": np.ones(5, np.float32)})
    checkpoint = opened({}, tensors={"blk.0.attn_sub_norm.weight": np.ones(64, np.float32)})
    assert "model.layers.0.attn_sub_norm.weight" in checkpoint.names()  # the model refuses what it has no use for


# Split files.


@pytest.fixture
def parts(
    tmp_path: Path, write_gguf: Write, llama_metadata: dict[str, Any], llama_tensors: dict[str, np.ndarray]
) -> list[Path]:
    """Three parts, as llama.cpp's gguf-split writes them: the metadata is in the first."""
    names = list(llama_tensors)
    paths = []
    for number in range(3):
        path = tmp_path / f"tiny-q8_0-{number + 1:05}-of-00003.gguf"
        metadata = (llama_metadata if number == 0 else {}) | {"split.no": number, "split.count": 3}
        paths.append(write_gguf(path, "llama", metadata, {name: llama_tensors[name] for name in names[number::3]}))
    return paths


@pytest.mark.parametrize("given", [0, 2])
def test_split_files(given: int, parts: list[Path], llama_tensors: dict[str, np.ndarray]) -> None:
    checkpoint = open_checkpoint(parts[given])
    assert (checkpoint.path, checkpoint.name) == (parts[0], "tiny")
    assert len(checkpoint.names()) == len(llama_tensors)
    down = dequantize(checkpoint.tensor("model.layers.0.mlp.down_proj.weight")).numpy()
    np.testing.assert_array_equal(down, llama_tensors["blk.0.ffn_down.weight"])


def test_faults_of_split_files(parts: list[Path], tmp_path: Path) -> None:
    alone = tmp_path / "alone.gguf"
    alone.symlink_to(parts[0])
    with pytest.raises(ModelLoadError, match=r"alone\.gguf says that it is one of 3 parts, but 1 were found"):
        open_checkpoint(alone)
    kept = parts[2].read_bytes()
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(ModelLoadError, match=r"'split\.no' in .*00003-of-00003\.gguf must be 2"):
        open_checkpoint(parts[0])
    parts[2].write_bytes(kept)
    parts[1].unlink()
    with pytest.raises(ModelLoadError, match=r"one of 3 parts, of which are missing in its folder: tiny-q8_0-00002-of"):
        open_checkpoint(parts[0])
