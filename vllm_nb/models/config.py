"""What a model file says of the model, in one form for safetensors folders and GGUF files."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding. scaling: the `rope_scaling` dictionary of Hugging Face configs (linear, dynamic, yarn, llama3),
    key "rope_type"; local_theta: the base of sliding-window layers where it differs (Gemma 3), unscaled."""

    theta: float = 10000.0
    scaling: dict[str, Any] | None = None
    local_theta: float | None = None
    rotary_dim: int | None = None  # None: the whole head


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of a decoder. Names follow Hugging Face configs where they agree with each other."""

    architecture: str  # a key of models.registry: "llama", "qwen2", "qwen3", "gemma3"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int  # the context the model was made for, tokens
    rms_norm_eps: float
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # on q, k and v (Qwen2)
    attention_output_bias: bool = False
    mlp_bias: bool = False
    activation: str = "silu"  # or "gelu_tanh"
    attention_scale: float | None = None  # None: head_dim ** -0.5
    attention_softcap: float | None = None
    final_softcap: float | None = None
    sliding_window: int | None = None  # tokens, the current one included
    sliding_layers: tuple[bool, ...] | None = None  # per layer; None: all, when sliding_window is set


@dataclass(frozen=True)
class GenerationDefaults:
    """What the model's makers advise (generation_config.json), and the ids that end its answers.

    sampling: any of temperature, top_k, top_p, min_p, repetition_penalty. Never anything the files do not say.
    """

    eos_token_ids: tuple[int, ...] = ()
    sampling: dict[str, float] = field(default_factory=dict)
