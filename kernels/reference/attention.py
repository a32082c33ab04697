"""Causal attention over the paged cache."""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from vllm_nb.kernels.backend import PagedBatch
from vllm_nb.kernels.reference.activation import softcap as cap_scores
from vllm_nb.kernels.reference.kv_cache import KVCache
from vllm_nb.kernels.reference.precision import widen

# Query rows of a prompt worked on at a time: bounds the score matrix, and a tile's context ends at its last row.
QUERY_TILE = 256


def attention(
    q: Tensor,
    kv: KVCache,
    batch: PagedBatch,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    """Each token of q [T, Hq * D] attends to its sequence's cache up to itself, or to its last `sliding_window` tokens.

    The keys of this step's tokens are in the cache already. Query head h reads key head h // (Hq / Hkv). Scores are
    scaled, then capped (cap * tanh(score / cap)) where `softcap` is set. Returns [T, Hq * D].
    """
    heads = q.unflatten(-1, (num_kv_heads, num_heads // num_kv_heads, head_dim))  # [T, Hkv, group, D]
    attend = partial(_attend, kv=kv, scale=scale, window=sliding_window, softcap=softcap)
    if batch.max_query_len == 1:
        return attend(heads.unsqueeze(1), batch.block_tables, batch.seq_lens, batch.max_seq_len).reshape(q.shape)

    out = torch.zeros_like(heads)
    starts, lengths = batch.query_start_loc.tolist(), batch.seq_lens.tolist()
    query_lens = [last - first for first, last in pairwise(starts)]
    decoding = [s for s, query_len in enumerate(query_lens) if query_len == 1]
    if decoding:
        rows = [starts[s] for s in decoding]
        longest = max(lengths[s] for s in decoding)
        tables, ends = batch.block_tables[decoding], batch.seq_lens[decoding]
        out[rows] = attend(heads[rows].unsqueeze(1), tables, ends, longest).squeeze(1)
    for s in (s for s, query_len in enumerate(query_lens) if query_len > 1):
        for first in range(starts[s], starts[s + 1], QUERY_TILE):
            last = min(first + QUERY_TILE, starts[s + 1])
            end = lengths[s] - (starts[s + 1] - last)
            ends = torch.tensor([end], device=q.device)
            out[first:last] = attend(heads[None, first:last], batch.block_tables[s : s + 1], ends, end)[0]
    return out.reshape(q.shape)


def _attend(
    q: Tensor,
    block_tables: Tensor,
    ends: Tensor,
    longest: int,
    *,
    kv: KVCache,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """S sequences at once: q [S, L, Hkv, group, D] are the L tokens before position ends [S]. Returns q's shape."""
    num_queries = q.shape[1]
    span = longest if window is None else min(longest, window + num_queries - 1)
    ends = ends.unsqueeze(1)
    context = ends + torch.arange(-span, 0, device=q.device)  # [S, span] positions, negative: before the sequence
    position = ends + torch.arange(-num_queries, 0, device=q.device)  # [S, L]
    age = position.unsqueeze(2) - context.unsqueeze(1)  # [S, L, span]
    hidden = (age < 0) | (context < 0).unsqueeze(1)
    if window is not None:
        hidden |= age >= window

    slots = _slots(block_tables, context, kv.block_size)
    keys, values = widen(kv.keys[slots]), widen(kv.values[slots])  # [S, span, Hkv, D]
    scores = torch.einsum("slhgd,snhd->shgln", widen(q), keys) * scale
    if softcap is not None:
        scores = cap_scores(scores, softcap)
    scores = scores.masked_fill(hidden[:, None, None], torch.finfo(scores.dtype).min)
    return torch.einsum("shgln,snhd->slhgd", scores.softmax(-1), values).to(q.dtype)


def _slots(block_tables: Tensor, context: Tensor, block_size: int) -> Tensor:
    """Where positions context [S, n] lie: [S, n].

    What lies before a sequence is given its first slot, since memory never written may hold NaN, which a probability
    of zero would not stop.
    """
    context = context.clamp(min=0)
    blocks = block_tables.gather(1, context // block_size)
    return blocks * block_size + context % block_size
