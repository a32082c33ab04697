"""QK-norm, rotary embedding and the write to the paged cache in one kernel: one launch where there would be six.

Grid (T, Hq + 2 Hkv): a program owns one head of one token. Bytes: qkv read once; q, k and v written once.
Rotary embedding: Su et al. 2021, in the half-split form.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_nb.kernels.triton.kv_cache import KVCache


@triton.jit
def rope_and_cache_kernel(
    q_out,  # [T, Hq, D]
    keys,  # [blocks, Hkv, block_size, D]
    values,  # the same
    qkv,  # [T, Hq + 2 Hkv, D]
    positions,  # [T]
    slot_mapping,  # [T], -1: padding
    cos_sin,  # float32 [max_len, ROTARY]
    q_norm,  # with NORM: float32 [D]
    k_norm,
    eps,
    key_scale,
    value_scale,
    NORM: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    ROTARY: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, D_PAD)
    inside = d < D
    start = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * D
    x = tl.load(start + d, mask=inside, other=0.0).to(tl.float32)

    slot = tl.load(slot_mapping + token).to(tl.int64)
    kv_head = (head - HEADS) % KV_HEADS
    at = ((slot // BLOCK_SIZE * KV_HEADS + kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE) * D
    kept = d < tl.where(slot >= 0, D, 0)  # nothing of a padding token
    if head >= HEADS + KV_HEADS:
        tl.store(values + at + d, (x / value_scale).to(values.dtype.element_ty), mask=kept)
        return

    # Dimension i turns with i + ROTARY / 2; dimensions past ROTARY stay.
    HALF: tl.constexpr = ROTARY // 2
    first = d < HALF
    turns = d < ROTARY
    partner = tl.where(first, d + HALF, tl.where(turns, d - HALF, d))
    y = tl.load(start + partner, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        weight = q_norm if head < HEADS else k_norm
        factor = tl.rsqrt(tl.sum(x * x, 0) / D + eps)
        # Rounded where the reference rounds: between the norm and the rotation.
        x = (x * factor * tl.load(weight + d, mask=inside, other=0.0)).to(qkv.dtype.element_ty).to(tl.float32)
        y = (y * factor * tl.load(weight + partner, mask=inside, other=0.0)).to(qkv.dtype.element_ty).to(tl.float32)
    angle = cos_sin + tl.load(positions + token).to(tl.int64) * ROTARY + d % HALF
    cos = tl.load(angle, mask=turns, other=1.0)
    sin = tl.load(angle + HALF, mask=turns, other=0.0)
    turned = x * cos + tl.where(first, -y, y) * sin
    if head < HEADS:
        tl.store(q_out + (token * HEADS + head) * D + d, turned.to(q_out.dtype.element_ty), mask=inside)
    else:
        rounded = turned.to(qkv.dtype.element_ty).to(tl.float32)
        tl.store(keys + at + d, (rounded / key_scale).to(keys.dtype.element_ty), mask=kept)


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
    """As `reference.rope_and_cache`: qkv [T, (Hq + 2 Hkv) * D] -> q [T, Hq * D]; k and v go to their slots."""
    num_tokens = qkv.shape[0]
    q = torch.empty(num_tokens, num_heads * head_dim, dtype=qkv.dtype, device=qkv.device)
    rope_and_cache_kernel[(num_tokens, num_heads + 2 * num_kv_heads)](
        q,
        kv.keys,
        kv.values,
        qkv,
        positions,
        slot_mapping,
        cos_sin,
        cos_sin if q_norm is None else q_norm,
        cos_sin if k_norm is None else k_norm,
        eps,
        kv.key_scale,
        kv.value_scale,
        NORM=q_norm is not None,
        HEADS=num_heads,
        KV_HEADS=num_kv_heads,
        BLOCK_SIZE=kv.block_size,
        D=head_dim,
        D_PAD=triton.next_power_of_2(head_dim),
        ROTARY=cos_sin.shape[1],
        num_warps=1,
    )
    return q
