"""Oracles for model files: gguf-py's reader and writer, and tiny random models that transformers saves."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TINY_CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, head_dim=32, attention_bias=True, mlp_bias=True),
    "llama3": lambda: LlamaConfig(**SIZES, rope_parameters=dict(LLAMA3_ROPE), eos_token_id=[2, 5]),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=32, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES | {"num_hidden_layers": 7}, head_dim=32, query_pre_attn_scalar=24, sliding_window=16
    ),
}


@pytest.fixture(scope="session", params=TINY_CONFIGS)
def tiny_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model of each family, as save_pretrained writes it."""
    return save_tiny(TINY_CONFIGS[request.param](), tmp_path_factory.mktemp(request.param))


def save_tiny(config: PreTrainedConfig, folder: Path) -> Path:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(TINY_CONFIGS["llama3"](), tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def save_model() -> Callable[[PreTrainedConfig, Path], Path]:
    """save_model(config, folder): random weights in float32."""
    return save_tiny


class SamplingReader(gguf.GGUFReader):
    """gguf-py's reader, which would take 15 s for Gemma's vocabulary; of long arrays it keeps each STEP-th element."""

    STEP = 97

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        count = int(self._get(orig_offs + 4, np.uint64)[0]) if raw_type == gguf.GGUFValueType.ARRAY else 0
        if count < 1000:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = int(self._get(orig_offs, np.uint32)[0])
        parts: list[Any] = []
        indices: list[int] = []
        at = orig_offs + 12
        for element in range(count):
            if element % self.STEP == 0:
                _, kept, inner, types = super()._get_field_parts(at, kind)
                indices += (len(parts) + index for index in inner)
                parts += kept
            at += 8 + int.from_bytes(self.data[at : at + 8].tobytes(), "little") if kind == 8 else 4
        return at - orig_offs, parts, indices, [gguf.GGUFValueType.ARRAY, *types]


@pytest.fixture(scope="session")
def gguf_reader() -> Callable[[Path], SamplingReader]:
    """gguf_reader(path): the file as gguf-py reads it, opened once."""
    return functools.cache(SamplingReader)


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    """write_gguf(path, architecture, metadata, tensors): a file by gguf-py.

    metadata: key -> value, where "{arch}" stands for the architecture. tensors: name -> float array, or (type name,
    bytes of the blocks [rows, bytes a row]).
    """

    def write(path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Path:
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in metadata.items():
            _add(writer, key.format(arch=architecture), value)
        for name, tensor in tensors.items():
            if isinstance(tensor, tuple):
                writer.add_tensor(name, tensor[1], raw_dtype=gguf.GGMLQuantizationType[tensor[0]])
            else:
                writer.add_tensor(name, np.ascontiguousarray(tensor))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


@pytest.fixture
def llama_metadata() -> dict[str, Any]:
    """What a llama GGUF must say, for the tensors of `llama_tensors`."""
    return {
        "{arch}.block_count": 1,
        "{arch}.context_length": 128,
        "{arch}.embedding_length": 64,
        "{arch}.feed_forward_length": 96,
        "{arch}.attention.head_count": 4,
        "{arch}.attention.head_count_kv": 2,
        "{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b"],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": "{{ messages }}",
    }


@pytest.fixture
def llama_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (4, 64),
        "output_norm.weight": (64,),
        "blk.0.attn_norm.weight": (64,),
        "blk.0.attn_q.weight": (64, 64),
        "blk.0.attn_k.weight": (32, 64),
        "blk.0.attn_v.weight": (32, 64),
        "blk.0.attn_output.weight": (64, 64),
        "blk.0.ffn_norm.weight": (64,),
        "blk.0.ffn_gate.weight": (96, 64),
        "blk.0.ffn_up.weight": (96, 64),
        "blk.0.ffn_down.weight": (64, 96),
    }
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
