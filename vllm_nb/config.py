"""The engine's settings: one frozen dataclass, validated once, the same in process and on the wire."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

DTYPES = ("auto", "float32", "float16", "bfloat16", "float64")
DEVICES = ("auto", "cpu", "cuda", "mps")
BACKENDS = ("auto", "reference", "cpu", "triton")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of one engine. Sizes are in tokens unless a name says blocks.

    Raises ValueError naming field, value and range.
    """

    device: str = "auto"
    backend: str = "auto"  # kernels: "cpu" (Numba), "triton", "reference" (plain PyTorch)
    dtype: str = "auto"  # of activations and KV cache; auto: what the backend is fastest in
    max_model_len: int | None = None  # prompt and output together; None: what the model was made for
    max_num_seqs: int = 64  # requests that run at once
    max_num_batched_tokens: int | None = None  # token budget of a step; None: 512 on a GPU, else 256
    prefill_chunk: int = 128  # most prompt tokens in a step while anything decodes, so that no stream stalls
    block_size: int = 16  # tokens in a KV block
    num_kv_blocks: int | None = None  # None: by kv_fraction
    kv_fraction: float | None = None  # most of the free memory that the KV cache may take; None: 0.9 on a GPU, else 0.3
    prefix_cache: bool = True
    prefix_cache_max_tokens: int | None = None  # None: the whole KV cache
    yarn_factor: float | None = None  # stretch the context by YaRN
    max_queued_requests: int = 1024  # that wait; more are refused
    max_queued_tokens: int | None = None  # of their prompts; None: no limit
    overlap: bool | None = None  # launch a step while the last one's tokens are dealt with; None: on a GPU
    threads: int | None = None  # CPU threads, of all engines in the process from here on; None: physical cores
    tool_parser: str = "auto"  # how tool calls are written: a family's name, "none", or as template and tokens show
    reasoning_parser: str = "auto"  # the same for reasoning

    def __post_init__(self) -> None:
        _one_of("device", self.device, DEVICES)
        _one_of("backend", self.backend, BACKENDS)
        _one_of("dtype", self.dtype, DTYPES)
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            kinds = int if isinstance(low, int) else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{name} must be {_kind(low)} from {low:,} to {high:,}, not {value!r}")
        for name in ("prefix_cache", "overlap"):
            value = getattr(self, name)
            if not isinstance(value, bool) and (value is not None or name not in _OPTIONAL):
                raise ValueError(f"{name} must be True or False, not {value!r}")
        for name in ("tool_parser", "reasoning_parser"):  # the model's dialogue knows which there are
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a parser's name, not {getattr(self, name)!r}")
        if self.max_num_batched_tokens is not None and self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): every running request decodes one token a step"
            )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "EngineConfig":
        """From plain data, refusing unknown names."""
        unknown = sorted(set(settings) - {f.name for f in fields(cls)})
        if unknown:
            if unknown[0] in NOT_YET:
                raise ValueError(f"{unknown[0]}: {NOT_YET[unknown[0]][1]}")
            known = ", ".join(f.name for f in fields(cls))
            raise ValueError(f"unknown engine setting {unknown[0]!r}; known are {known}")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


_BOUNDS: tuple[tuple[str, int | float, int | float], ...] = (
    ("max_model_len", 2, 10_000_000),
    ("max_num_seqs", 1, 4096),
    ("max_num_batched_tokens", 1, 65536),
    ("prefill_chunk", 1, 65536),
    ("block_size", 1, 256),
    ("num_kv_blocks", 1, 100_000_000),
    ("kv_fraction", 0.01, 0.95),
    ("prefix_cache_max_tokens", 0, 10**12),
    ("yarn_factor", 1.0, 64.0),
    ("max_queued_requests", 1, 1_000_000),
    ("max_queued_tokens", 1, 10**12),
    ("threads", 1, 1024),
)
_OPTIONAL = {f.name for f in fields(EngineConfig) if f.default is None}


def _kind(low: int | float) -> str:
    return "a whole number" if isinstance(low, int) else "a number"


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


# For the flags of vllm-nb and %vllm start: a line for each setting.
SETTINGS_HELP = {
    "device": "where to compute",
    "backend": "kernels: cpu (fast), reference (plain PyTorch)",
    "dtype": "of activations and KV cache",
    "max_model_len": "prompt and answer together, tokens",
    "max_num_seqs": "requests that run at once",
    "max_num_batched_tokens": "token budget of a step (default: 512 on a GPU, else 256)",
    "prefill_chunk": "most prompt tokens in a step while others decode",
    "block_size": "tokens in a KV block",
    "num_kv_blocks": "KV blocks, instead of --kv-fraction",
    "kv_fraction": "most of the free memory that the KV cache may take",
    "prefix_cache": "keep the KV blocks of prompts for reuse",
    "prefix_cache_max_tokens": "limit of the prefix cache",
    "yarn_factor": "stretch the context by YaRN",
    "max_queued_requests": "more that wait are refused",
    "max_queued_tokens": "refuse requests while more tokens of prompts wait",
    "overlap": "launch a step while the last one's tokens are dealt with (default: on a GPU)",
    "threads": "CPU threads (default: physical cores)",
    "tool_parser": "how the model writes tool calls: hermes, llama3, pythonic, mistral, deepseek, glm, phi, gemma, "
    "qwen_coder, harmony, none",
    "reasoning_parser": "how it marks its reasoning: think, mistral, none",
}
SETTINGS_CHOICES = {"device": DEVICES, "backend": BACKENDS, "dtype": DTYPES}
# Flags of what the engine does not have yet, so that nobody looks for the right spelling: (value, what is said).
NOT_YET: dict[str, tuple[str | None, str]] = {
    "isq": ("KIND", "quantising while loading is not built yet: give a file that is quantised already, as GGUF"),
    "ranks": ("0,1", "several GPUs or ranks are not built yet: the engine runs on one device"),
    "fp8_kvcache": (
        None,
        "an fp8 KV cache is not built yet: leave --dtype on auto, which keeps it in 8 bits on a CPU, 16 on a GPU",
    ),
    "lora": ("NAME=PATH", "LoRA adapters are not built yet: merge the adapter into its model, and give that"),
}
