"""Triton kernels for CUDA GPUs. The same functions as `reference`, which is their oracle; docs/gpu.md tells about them.

Without a GPU they run in Triton's interpreter (TRITON_INTERPRET=1, set before Triton is imported), in float32 and
float16: that is how the tests check them, and far too slow for anything else.
"""

from vllm_nb.kernels.triton.activation import gelu_tanh_mul, silu_mul, softcap
from vllm_nb.kernels.triton.attention import attention
from vllm_nb.kernels.triton.kv_cache import KVCache, allocate_kv
from vllm_nb.kernels.triton.linear import embedding, gather_rows, linear
from vllm_nb.kernels.triton.moe import moe
from vllm_nb.kernels.triton.norm import add_rms_norm, rms_norm
from vllm_nb.kernels.triton.packing import Weight, pack
from vllm_nb.kernels.triton.penalties import penalize, uniforms
from vllm_nb.kernels.triton.rope import rope_and_cache
from vllm_nb.kernels.triton.sampling import sample, token_logprobs

CUDA_GRAPHS = True  # no function here waits for the device, so that a whole step can be captured

__all__ = [
    "CUDA_GRAPHS",
    "KVCache",
    "Weight",
    "add_rms_norm",
    "allocate_kv",
    "attention",
    "embedding",
    "gather_rows",
    "gelu_tanh_mul",
    "linear",
    "moe",
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
