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


def kernel_timer_for(device: torch.device) -> Timer:
    """The same for work that a CUDA graph can hold, as it is when decoding: launched one by one from Python, many a
    kernel would end before the next is there."""
    return _GraphTimer(device) if device.type == "cuda" else _time_once


class _GraphTimer:
    """Rounds of the work in one graph, between them as many bytes read as push all else out of the L2 cache; less the
    same graph without the work."""

    _ROUNDS, _REPLAYS = 10, 7

    def __init__(self, device: torch.device):
        self._others = torch.zeros(2**26, device=device)  # 256 MB
        self._stream = torch.cuda.Stream(device)
        self._reading = self._seconds(lambda: None)

    def __call__(self, work: Callable[[], Any]) -> float:
        return max(self._seconds(work) - self._reading, 1e-8) / self._ROUNDS

    def _seconds(self, work: Callable[[], Any]) -> float:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(2):  # compiles, and takes memory that a capture must not take
                self._others.sum()
                work()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            for _ in range(self._ROUNDS):
                self._others.sum()
                work()
        graph.replay()
        return sorted(_replay_seconds(graph) for _ in range(self._REPLAYS))[self._REPLAYS // 2]


def _replay_seconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end)


def _time_once(work: Callable[[], Any]) -> float:
    import time

    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
