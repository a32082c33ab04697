"""What happens to q, k and v between their projection and attention."""

import torch
from torch import Tensor

from vllm_nb.kernels.reference.kv_cache import KVCache
from vllm_nb.kernels.reference.norm import rms_norm
from vllm_nb.kernels.reference.precision import widen


def rope_and_cache(
    qkv: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    cos_sin: Tensor,
    kv: KVCache,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """RMSNorm on each head of q and k (where weights [D] are given), rotary embedding, k and v written to their slots.

    qkv [T, (Hq + 2 Hkv) * D]; positions, slot_mapping [T] (slot -1: padding, not written); cos_sin [max_len,
    rotary_dim]: cosines in the first half of the columns, sines in the second. Returns q [T, Hq * D].
    """
    heads = qkv.unflatten(-1, (-1, head_dim))  # [T, Hq + 2 Hkv, D]
    q, k, v = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    if q_norm is not None:
        q = rms_norm(q, q_norm, eps)
    if k_norm is not None:
        k = rms_norm(k, k_norm, eps)
    cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)  # [T, 1, rotary_dim / 2] each
    kv.write(slot_mapping, rotate(k, cos, sin), v)
    return rotate(q, cos, sin).flatten(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + rotary_dim / 2]) of each head of x [T, H, D]; dimensions past rotary_dim stay."""
    half = cos.shape[-1]
    first, second, rest = widen(x).split((half, half, x.shape[-1] - 2 * half), dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
    return turned.to(x.dtype)
