"""config.json and generation_config.json of a Hugging Face folder, as ModelConfig and GenerationDefaults.

A field that is absent means what transformers takes it for (its configuration_*.py files); sizes that nobody should
guess are required.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_nb.errors import ModelLoadError
from vllm_nb.models.config import GenerationDefaults, ModelConfig, RopeConfig
from vllm_nb.weights.checks import check_sampling, check_sizes, stretched_context, unsupported_architecture
from vllm_nb.weights.fields import MAX_LAYERS, Fields, read_json

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

# Keys of `rope_scaling` with the type of their values, by rope_type; the first tuple must be there.
_ROPE_SCALINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
    "yarn": (
        ("factor",),
        ("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    ),
}


@dataclass(frozen=True)
class _Family:
    """How one model_type reads config.json. sizes: defaults of the whole numbers that may be absent."""

    architecture: str
    own: Callable[[Fields], dict[str, Any]]  # the fields of ModelConfig that the families differ in
    sizes: Mapping[str, int]
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    activation: tuple[str, str] = ("hidden_act", "silu")  # the field's name, and its default


def read_folder(folder: Path) -> tuple[ModelConfig, GenerationDefaults]:
    """The configuration of the model in `folder`. Raises ModelLoadError naming file and field."""
    path = folder / "config.json"
    whole = Fields(read_json(path), path)
    _refuse_quantized(whole)
    text = whole.mapping("text_config") if whole.text("model_type") == "gemma3" else whole
    model_type = text.text("model_type", "gemma3_text")  # older multimodal configs leave it out
    family = FAMILIES.get(model_type)
    if family is None:
        raise unsupported_architecture(model_type, path, sorted(["gemma3", *FAMILIES]))
    return _model_config(text, family), _generation(folder, whole, text)


def _refuse_quantized(whole: Fields) -> None:
    quantization = whole.mapping("quantization_config", None)
    if quantization is not None:
        method = quantization.text("quant_method", "unknown")
        raise ModelLoadError(
            f"{whole.path} says that the weights are quantised ({method}), which is not supported yet for safetensors. "
            "Take the model's original weights in bfloat16, or a GGUF file of it."
        )


def _model_config(config: Fields, family: _Family) -> ModelConfig:
    def size(name: str, **bounds: int) -> int:
        default = (family.sizes[name],) if name in family.sizes else ()
        return config.integer(name, *default, **bounds)

    num_heads, hidden_size = size("num_attention_heads"), size("hidden_size")
    head_dim = config.integer("head_dim", family.sizes.get("head_dim")) or hidden_size // num_heads
    rope = _rope(config, head_dim, family)
    model = ModelConfig(
        architecture=family.architecture,
        vocab_size=size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=size("intermediate_size"),
        num_layers=size("num_hidden_layers", high=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(config, num_heads, family),
        head_dim=head_dim,
        max_position=stretched_context(size("max_position_embeddings"), rope.scaling),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6, above=0),
        rope=rope,
        tie_word_embeddings=config.boolean("tie_word_embeddings", family.tie_word_embeddings),
        activation=_activation(config, *family.activation),
        **family.own(config),
    )
    return check_sizes(model, config.path)


def _num_kv_heads(config: Fields, num_heads: int, family: _Family) -> int:
    """Null means one for each query head; absent means the family's default."""
    absent = "num_key_value_heads" not in config.values
    default = family.sizes.get("num_key_value_heads", num_heads) if absent else num_heads
    return config.integer("num_key_value_heads", default)


def _activation(config: Fields, field: str, default: str) -> str:
    given = config.text(field, default)
    if given not in _ACTIVATIONS:
        raise config.error(field, f"must be one of {', '.join(_ACTIVATIONS)}, not {given!r}")
    return _ACTIVATIONS[given]


def _rope(config: Fields, head_dim: int, family: _Family) -> RopeConfig:
    """Spelt in three ways: rope_theta and rope_scaling (before transformers 5), rope_parameters (since), and the same
    by type of layer (Gemma 3, since).
    """
    parameters = config.mapping("rope_parameters", None) or Fields({}, config.path)
    local_theta = None
    if family.architecture == "gemma3":
        local = parameters.mapping("sliding_attention", None) or Fields({}, config.path)
        if _rope_type(local) != "default":
            raise local.error("rope_type", "must be 'default': scaling on sliding-window layers is not supported")
        local_theta = local.number("rope_theta", config.number("rope_local_base_freq", 10000.0, above=0), above=0)
        parameters = parameters.mapping("full_attention", None) or Fields({}, config.path)
    scaling_fields = config.mapping("rope_scaling", None) or parameters
    theta = config.number("rope_theta", family.rope_theta, above=0)
    theta = parameters.number("rope_theta", theta, above=0)
    return RopeConfig(theta, _scaling(scaling_fields), local_theta, _rotary_dim(config, parameters, head_dim))


def _rope_type(scaling: Fields) -> str:
    return scaling.text("rope_type", scaling.text("type", "default"))


def _scaling(given: Fields) -> dict[str, Any] | None:
    """The scaling in one spelling, its numbers checked."""
    kind = _rope_type(given)
    if kind == "default":
        return None
    if kind not in _ROPE_SCALINGS:
        raise given.error("rope_type", f"must be one of default, {', '.join(_ROPE_SCALINGS)}, not {kind!r}")
    required, optional = _ROPE_SCALINGS[kind]
    scaling: dict[str, Any] = {"rope_type": kind}
    scaling |= {key: given.number(key, above=0) for key in required}
    scaling |= {key: given.number(key, above=0) for key in optional if key in given}
    if kind == "yarn" and "truncate" in given:
        scaling["truncate"] = given.boolean("truncate", True)
    return scaling


def _rotary_dim(config: Fields, parameters: Fields, head_dim: int) -> int | None:
    share = parameters.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0, above=0), above=0)
    return int(head_dim * share) if share != 1 else None


def _llama(config: Fields) -> dict[str, Any]:
    bias = config.boolean("attention_bias", False)
    return {
        "attention_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": config.boolean("mlp_bias", False),
    }


def _mistral(config: Fields) -> dict[str, Any]:
    # An absent field is 4096 to transformers, null is no window.
    window = config.integer("sliding_window", None if "sliding_window" in config.values else 4096)
    return {"sliding_window": window}


def _qwen2(config: Fields) -> dict[str, Any]:
    return {"attention_bias": True, **_qwen_windows(config)}


def _qwen3(config: Fields) -> dict[str, Any]:
    bias = config.boolean("attention_bias", False)
    return {"attention_bias": bias, "attention_output_bias": bias, **_qwen_windows(config)}


def _qwen_windows(config: Fields) -> dict[str, Any]:
    """Windows on the layers from max_window_layers on, and only when use_sliding_window says so."""
    window = config.integer("sliding_window", None if "sliding_window" in config.values else 4096)
    if window is None or not config.boolean("use_sliding_window", False):
        return {}
    first = config.integer("max_window_layers", 28, low=0)
    num_layers = config.integer("num_hidden_layers", high=MAX_LAYERS)
    layers = _layer_types(config, num_layers) or tuple(layer >= first for layer in range(num_layers))
    return {"sliding_window": window, "sliding_layers": layers} if any(layers) else {}


def _gemma3(config: Fields) -> dict[str, Any]:
    if config.boolean("use_bidirectional_attention", False):
        raise config.error("use_bidirectional_attention", "must be false: embedding models are not supported")
    bias = config.boolean("attention_bias", False)
    period = config.integer("sliding_window_pattern", 6)
    num_layers = config.integer("num_hidden_layers", 26, high=MAX_LAYERS)
    layers = _layer_types(config, num_layers) or tuple((layer + 1) % period > 0 for layer in range(num_layers))
    return {
        "attention_bias": bias,
        "attention_output_bias": bias,
        "attention_scale": config.number("query_pre_attn_scalar", 256, above=0) ** -0.5,
        "attention_softcap": config.number("attn_logit_softcapping", None, above=0),
        "final_softcap": config.number("final_logit_softcapping", None, above=0),
        "sliding_window": config.integer("sliding_window", 4096),
        "sliding_layers": layers,
    }


def _layer_types(config: Fields, num_layers: int) -> tuple[bool, ...] | None:
    """Which layers have a sliding window, where the configuration lists them."""
    kinds = config.items("layer_types", None)
    if kinds is None:
        return None
    known = ("sliding_attention", "full_attention")
    if len(kinds) != num_layers or any(kind not in known for kind in kinds):
        raise config.error("layer_types", f"must list one of {' and '.join(known)} for each of {num_layers} layers")
    return tuple(kind == known[0] for kind in kinds)


FAMILIES = {
    "llama": _Family("llama", _llama, {"max_position_embeddings": 2048}),
    "mistral": _Family("llama", _mistral, {"max_position_embeddings": 131_072, "num_key_value_heads": 8}),
    "qwen2": _Family("qwen2", _qwen2, {"max_position_embeddings": 32_768, "num_key_value_heads": 32}),
    "qwen3": _Family("qwen3", _qwen3, {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "head_dim": 128}),
    "gemma3_text": _Family(
        "gemma3",
        _gemma3,
        {  # Multimodal models leave out of text_config whatever equals these.
            "vocab_size": 262_208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131_072,
        },
        rope_theta=1_000_000.0,
        tie_word_embeddings=True,
        activation=("hidden_activation", "gelu_pytorch_tanh"),
    ),
}


def _generation(folder: Path, whole: Fields, text: Fields) -> GenerationDefaults:
    """generation_config.json, which is optional; the ids that end an answer else come from config.json."""
    path = folder / "generation_config.json"
    given = Fields(read_json(path), path) if path.is_file() else Fields({}, path)
    ids = _token_ids(given) or _token_ids(whole) or _token_ids(text)
    if given.boolean("do_sample", True) is False:
        return GenerationDefaults(ids, {"temperature": 0.0})
    sampling = {name: given.number(name) for name in _SAMPLING if name in given}
    return GenerationDefaults(ids, check_sampling(sampling, path))


def _token_ids(fields: Fields) -> tuple[int, ...]:
    """eos_token_id: absent, a number or a list of numbers."""
    value = fields.values.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise fields.error("eos_token_id", f"must be a token id or a list of them, not {value!r}")
    return tuple(ids)
