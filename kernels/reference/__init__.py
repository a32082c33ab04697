"""Plain PyTorch: the oracle the fast backends are tested against, and the path for every other device.

Each function accumulates in float32 (float64 for a float64 model) and returns the type of its input.
"""

from vllm_nb.kernels.reference.activation import gelu_tanh_mul, silu_mul, softcap
from vllm_nb.kernels.reference.attention import attention
from vllm_nb.kernels.reference.kv_cache import KVCache, allocate_kv
from vllm_nb.kernels.reference.linear import embedding, gather_rows, linear, pack
from vllm_nb.kernels.reference.norm import add_rms_norm, rms_norm
from vllm_nb.kernels.reference.rope import rope_and_cache
from vllm_nb.kernels.reference.sampling import penalize, sample, token_logprobs, uniforms

__all__ = [
    "KVCache",
    "add_rms_norm",
    "allocate_kv",
    "attention",
    "embedding",
    "gather_rows",
    "gelu_tanh_mul",
    "linear",
    "pack",
    "penalize",
    "rms_norm",
    "rope_and_cache",
    "sample",
    "silu_mul",
    "softcap",
    "token_logprobs",
    "uniforms",
]
