"""The CPU backend: Numba and LLVM vector intrinsics, packed weights, and whole steps as one call (docs/cpu.md).

The same functions as `kernels.reference`, and

    prepare(progress=None)              compile what is not cached yet; call it before loading a model
    capture(forward, batch, kv)         a forward pass as a graph: graph.replay(num_tokens, num_seqs, num_logits)
    set_threads(n)                      default: physical cores
    select(variant), describe()         which instructions are used
    pack(parts, dtype=..., device=...)  quantised parts keep their precision, others are held in dtype

Activations are float32. Names are imported on first use: a process that only compiles kernels needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_nb.kernels.cpu.backend import describe, prepare, select, set_threads
    from vllm_nb.kernels.cpu.graph import Graph, capture
    from vllm_nb.kernels.cpu.kv import KVCache, allocate_kv
    from vllm_nb.kernels.cpu.ops import (
        add_rms_norm,
        attention,
        embedding,
        gather_rows,
        gelu_tanh_mul,
        linear,
        rms_norm,
        rope_and_cache,
        silu_mul,
        softcap,
    )
    from vllm_nb.kernels.cpu.packing import Weight, pack
    from vllm_nb.kernels.cpu.sampling import penalize, sample, token_logprobs, uniforms

_HOMES = {
    "backend": ("describe", "prepare", "select", "set_threads"),
    "graph": ("Graph", "capture"),
    "kv": ("KVCache", "allocate_kv"),
    "ops": (
        "add_rms_norm", "attention", "embedding", "gather_rows", "gelu_tanh_mul", "linear", "rms_norm",
        "rope_and_cache", "silu_mul", "softcap",
    ),
    "packing": ("Weight", "pack"),
    "sampling": ("penalize", "sample", "token_logprobs", "uniforms"),
}  # fmt: skip

__all__ = [
    "Graph",
    "KVCache",
    "Weight",
    "add_rms_norm",
    "allocate_kv",
    "attention",
    "capture",
    "describe",
    "embedding",
    "gather_rows",
    "gelu_tanh_mul",
    "linear",
    "pack",
    "penalize",
    "prepare",
    "rms_norm",
    "rope_and_cache",
    "sample",
    "select",
    "set_threads",
    "silu_mul",
    "softcap",
    "token_logprobs",
    "uniforms",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
