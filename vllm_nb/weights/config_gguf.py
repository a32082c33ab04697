"""GGUF metadata, as ModelConfig and GenerationDefaults.

The keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; what an absent one means is read off llama.cpp.
"""

import math
from typing import Any

import torch

from vllm_nb.kernels.quant import RawTensor
from vllm_nb.models.config import GenerationDefaults, ModelConfig, RopeConfig
from vllm_nb.weights.checks import check_sampling, check_sizes, stretched_context, unsupported_architecture
from vllm_nb.weights.fields import MAX_LAYERS, Fields
from vllm_nb.weights.gguf import GgufFile, TensorInfo

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")

# Older files name only the end of a document; these tokens end an answer in a chat.
_END_OF_TURN = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>")
_END_IDS = ("eos_token_id", "eot_token_id", "eom_token_id")

_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_GEMMA3_27B_LAYERS = 62  # the one size that scales attention by hidden size / heads; the file does not say so


def read_config(file: GgufFile, tensors: dict[str, TensorInfo], frequency_factors: RawTensor | None) -> ModelConfig:
    """The configuration in a file's metadata. Raises ModelLoadError naming file and field.

    tensors: those of all parts of a split file. frequency_factors: the tensor "rope_freqs.weight", Llama 3's scaling.
    """
    architecture = Fields(file.metadata, file.path).text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise unsupported_architecture(architecture, file.path, ARCHITECTURES)
    fields = Fields(file.metadata, file.path, prefix=f"{architecture}.")
    if fields.integer("expert_count", 0, low=0):
        raise fields.error("expert_count", "says that this is a mixture of experts, which is not supported yet")
    num_layers = fields.integer("block_count", high=MAX_LAYERS)
    num_heads = _same_in_all_layers(fields, "attention.head_count", num_layers)
    hidden_size = fields.integer("embedding_length")
    head_dim = fields.integer("attention.key_length", hidden_size // num_heads)
    if fields.integer("attention.value_length", head_dim) != head_dim:
        raise fields.error("attention.value_length", f"must equal attention.key_length ({head_dim})")
    rope = _rope(fields, architecture, head_dim, frequency_factors)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=_vocab_size(fields, tensors),
        hidden_size=hidden_size,
        intermediate_size=_same_in_all_layers(fields, "feed_forward_length", num_layers),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_same_in_all_layers(fields, "attention.head_count_kv", num_layers, default=num_heads),
        head_dim=head_dim,
        max_position=stretched_context(fields.integer("context_length"), rope.scaling),
        rms_norm_eps=fields.number("attention.layer_norm_rms_epsilon", above=0),
        rope=rope,
        tie_word_embeddings="output.weight" not in tensors,
        attention_bias="blk.0.attn_q.bias" in tensors,
        attention_output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_gate.bias" in tensors,
        **_own(fields, architecture, num_layers, hidden_size // num_heads),
    )
    return check_sizes(config, file.path)


def _same_in_all_layers(fields: Fields, name: str, num_layers: int, default: int | None = None) -> int:
    """A size that may be listed layer by layer; the models here want it the same in all."""
    value = fields.values.get(fields.prefix + name)
    if isinstance(value, list):
        if len(value) != num_layers or any(size != value[0] for size in value):
            raise fields.error(name, "differs between layers, which is not supported")
        fields = Fields({name: value[0]}, fields.path, inside=fields.prefix)
    return fields.integer(name, default) if default is not None else fields.integer(name)


def _vocab_size(fields: Fields, tensors: dict[str, TensorInfo]) -> int:
    """The embedding's rows, which may be more than there are tokens."""
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise fields.error("vocab_size", "cannot be checked: the file has no matrix 'token_embd.weight'")
    return embedding.shape[0]


def _own(fields: Fields, architecture: str, num_layers: int, share: int) -> dict[str, Any]:
    """What sets an architecture apart. share: hidden size / query heads."""
    scale = fields.number("attention.scale", None, above=0)
    if architecture.startswith("qwen"):
        return {"attention_scale": scale}  # conversion leaves their windows out, and no released model uses them
    window = fields.integer("attention.sliding_window", 0, low=0) or None
    if architecture == "llama":
        return {"attention_scale": scale, "sliding_window": window}  # Mistral's window: on every layer
    if scale is None and num_layers == _GEMMA3_27B_LAYERS:
        scale = share**-0.5
    own: dict[str, Any] = {
        "attention_scale": scale,
        "activation": "gelu_tanh",
        "attention_softcap": fields.number("attn_logit_softcapping", 0.0) or None,
        "final_softcap": fields.number("final_logit_softcapping", 0.0) or None,
    }
    if window:
        own |= {"sliding_window": window, "sliding_layers": _sliding_layers(fields, num_layers)}
    return own


def _sliding_layers(fields: Fields, num_layers: int) -> tuple[bool, ...]:
    """A period, of which the last layer has full attention, or one flag a layer; 6 where the file says neither."""
    name = "attention.sliding_window_pattern"
    flags = fields.values.get(fields.prefix + name)
    if isinstance(flags, list):
        if len(flags) != num_layers or not all(isinstance(flag, bool) for flag in flags):
            raise fields.error(name, f"must hold true or false for each of {num_layers} layers")
        return tuple(flags)
    period = fields.integer(name, 6)
    return tuple((layer + 1) % period > 0 for layer in range(num_layers))


def _rope(fields: Fields, architecture: str, head_dim: int, frequency_factors: RawTensor | None) -> RopeConfig:
    slides = architecture == "gemma3" and fields.integer("attention.sliding_window", 0, low=0) > 0
    rotary_dim = fields.integer("rope.dimension_count", head_dim)
    scaling = _scaling(fields)
    if frequency_factors is not None:
        if scaling is not None:
            raise fields.error("rope.scaling.type", "comes with a tensor 'rope_freqs.weight'; one of them is expected")
        factors = _positive(fields, frequency_factors, rotary_dim // 2)
        scaling = {"rope_type": "factors", "factors": factors}
    return RopeConfig(
        theta=fields.number("rope.freq_base", 10000.0, above=0),
        scaling=scaling,
        local_theta=fields.number("rope.freq_base_swa", 10000.0, above=0) if slides else None,
        rotary_dim=rotary_dim if rotary_dim != head_dim else None,
    )


def _scaling(fields: Fields) -> dict[str, Any] | None:
    factor = fields.number("rope.scaling.factor", 0.0) or fields.number("rope.scale_linear", 0.0)
    kind = fields.text("rope.scaling.type", "linear") if factor else "none"
    if kind == "none" or (kind == "linear" and factor == 1):
        return None
    if factor <= 0:
        raise fields.error("rope.scaling.factor", f"must be greater than 0, not {factor:g}")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise fields.error("rope.scaling.type", f"must be none, linear or yarn, not {kind!r}")
    return _yarn(fields, factor)


def _positive(fields: Fields, factors: RawTensor, count: int) -> list[float]:
    """What each of the `count` frequencies is divided by."""
    if not isinstance(factors, torch.Tensor) or factors.shape != (count,) or not bool((factors > 0).all()):
        raise fields.error("rope.dimension_count", f"asks for {count} positive factors in 'rope_freqs.weight'")
    return factors.tolist()


def _yarn(fields: Fields, factor: float) -> dict[str, Any]:
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "beta_fast": fields.number("rope.scaling.yarn_beta_fast", 32.0, above=0),
        "beta_slow": fields.number("rope.scaling.yarn_beta_slow", 1.0, above=0),
    }
    original = fields.integer("rope.scaling.original_context_length", None)
    if original is not None:
        scaling["original_max_position_embeddings"] = original
    if fields.number("rope.scaling.yarn_ext_factor", 1.0) != 1:
        raise fields.error("rope.scaling.yarn_ext_factor", "must be 1")
    # llama.cpp multiplies these with the factor of YaRN's paper, which Hugging Face's attention_factor replaces.
    extra = fields.number("rope.scaling.attn_factor", 1.0) * fields.number("rope.scaling.yarn_attn_factor", 1.0)
    if extra != 1:
        scaling["attention_factor"] = extra * (0.1 * math.log(factor) + 1 if factor > 1 else 1)
    return scaling


def read_generation(file: GgufFile) -> GenerationDefaults:
    """The ids that end an answer, and the sampling the file advises. Raises ModelLoadError."""
    tokens = Fields(file.metadata, file.path, prefix="tokenizer.ggml.")
    ids = [tokens.integer(name, None, low=0) for name in _END_IDS]
    if "eot_token_id" not in tokens:
        ids += _end_of_turn(tokens)
    advice = Fields(file.metadata, file.path, prefix="general.sampling.")
    sampling = {ours: advice.number(name) for name, ours in _SAMPLING.items() if name in advice}
    known = dict.fromkeys(token_id for token_id in ids if token_id is not None)
    return GenerationDefaults(tuple(known), check_sampling(sampling, file.path))


def _end_of_turn(tokens: Fields) -> list[int]:
    """Ids of the vocabulary's tokens that end a turn."""
    vocabulary = tokens.items("tokens", [])
    return [vocabulary.index(text) for text in _END_OF_TURN if text in vocabulary]
