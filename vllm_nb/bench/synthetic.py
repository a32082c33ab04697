"""Models of real shapes with random weights: for speed, which does not depend on what the weights say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vllm_nb.models.config import GenerationDefaults, ModelConfig, RopeConfig
from vllm_nb.weights.checkpoint import TensorHeader

_QWEN3: dict[str, Any] = {
    "architecture": "qwen3",
    "vocab_size": 151936,
    "num_kv_heads": 8,
    "head_dim": 128,
    "max_position": 40960,
    "rms_norm_eps": 1e-6,
    "rope": RopeConfig(theta=1e6),
}
SHAPES = {
    "qwen3-8b": ModelConfig(**_QWEN3, hidden_size=4096, intermediate_size=12288, num_layers=36, num_heads=32),
    "qwen3-0.6b": ModelConfig(
        **_QWEN3, hidden_size=1024, intermediate_size=3072, num_layers=28, num_heads=16, tie_word_embeddings=True
    ),
    "tiny": ModelConfig(
        **{**_QWEN3, "vocab_size": 300, "num_kv_heads": 2, "head_dim": 16, "max_position": 256},
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=4,
    ),
}


class SyntheticCheckpoint:
    """A checkpoint without files. Tensors are made on `device` when they are asked for, in bfloat16."""

    generation = GenerationDefaults()

    def __init__(self, name: str, device: torch.device):
        self.config = SHAPES[name]
        self.name = name
        self.path = Path(name)
        self._device = device
        self._shapes = _shapes(self.config)

    def names(self) -> set[str]:
        return set(self._shapes)

    def describe(self, name: str) -> TensorHeader:
        return TensorHeader("BF16", self._shapes[name])

    def tensor(self, name: str) -> torch.Tensor:
        """Small enough that activations stay near 1."""
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16, device=self._device)
        return torch.randn(shape, dtype=torch.bfloat16, device=self._device) * shape[1] ** -0.5

    def load_tokenizer(self) -> Any:
        raise NotImplementedError("a synthetic model has no tokenizer: feed it token ids")

    def chat_template(self) -> None:
        return None

    def close(self) -> None:
        """There are no files."""


def _shapes(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (c.vocab_size, c.hidden_size),
        "model.norm.weight": (c.hidden_size,),
    }
    if not c.tie_word_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (c.hidden_size,),
        "self_attn.q_proj": (q, c.hidden_size),
        "self_attn.k_proj": (kv, c.hidden_size),
        "self_attn.v_proj": (kv, c.hidden_size),
        "self_attn.q_norm": (c.head_dim,),
        "self_attn.k_norm": (c.head_dim,),
        "self_attn.o_proj": (c.hidden_size, q),
        "post_attention_layernorm": (c.hidden_size,),
        "mlp.gate_proj": (c.intermediate_size, c.hidden_size),
        "mlp.up_proj": (c.intermediate_size, c.hidden_size),
        "mlp.down_proj": (c.hidden_size, c.intermediate_size),
    }
    for i in range(c.num_layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


Timer = Callable[[Callable[[], Any]], float]


def timer_for(device: torch.device) -> Timer:
    """Median seconds of some work; on a GPU by its own clock, with a cold L2 cache."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return lambda work: 1e-3 * float(do_bench(work, warmup=50, rep=200, return_mode="median"))
    return _time_once


def _time_once(work: Callable[[], Any]) -> float:
    import time

    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
