"""Unified paged attention: prefill, chunked prefill, decode and mixtures of them in one kernel.

A program owns BLOCK_Q consecutive tokens of one sequence and one key head, with all query heads that read that key
head: BLOCK_M = BLOCK_Q * (query heads per key head) rows, padded, so that even one decoding token fills a tensor-core
tile. It walks over the context in tiles of TILE keys, looked up in the block table, and keeps a running softmax (Dao et
al. 2022, Milakov and Gimelshein 2018).

Grid (T // BLOCK_Q + S, Hkv, splits): the first is an upper bound for the query tiles of S sequences, so the host needs
not know their lengths; a program that finds no tokens ends. Where all decode it is (S, Hkv, splits). With splits > 1
(decoding few long contexts) each program walks a part of the tiles and leaves an unnormalised sum, which `merge_splits`
puts together, grid (T, Hq).

Bytes: keys and values of the context once for each query tile and key head, 2 * Hkv * D * itemsize a token of context;
decoding reads nothing twice. Layout: Kwon et al. 2023 (block table), with heads outside of a block's tokens.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_nb.kernels.backend import PagedBatch
from vllm_nb.kernels.triton.kv_cache import KVCache
from vllm_nb.kernels.triton.tiles import MAX_SPLITS, attention_tiles, gpu_of, num_splits, padded


@triton.jit
def _sequence_of(tile, query_start_loc, num_seqs, BLOCK_Q: tl.constexpr):
    """The sequence whose query tiles hold number `tile`: sequence s begins at tile query_start_loc[s] // BLOCK_Q +
    s."""
    low = 0
    high = num_seqs
    while low < high:
        middle = (low + high) // 2
        if tl.load(query_start_loc + middle) // BLOCK_Q + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def _cap(scores, cap):
    """cap * tanh(scores / cap)"""
    return cap * (2 * tl.sigmoid(2 * scores / cap) - 1)


@triton.jit(do_not_specialize=["table_stride", "num_seqs"])
def attention_kernel(
    out,  # [T, Hq, DV], or with SPLIT float32 [T, Hq, splits, DV]
    sums,  # with SPLIT: float32 [T, Hq, splits, 2], the running maximum and sum
    q,  # [T, Hq, D]
    keys,  # [blocks, Hkv, block_size, D]
    values,  # [blocks, Hkv, block_size, DV]
    block_tables,  # [S, table_stride]
    seq_lens,  # [S]
    query_start_loc,  # [S + 1]
    ends,  # with ENDS: [T], one past the last position that a token sees
    sinks,  # with SINKS: [Hq], a logit that takes part in the softmax and adds nothing
    scale,
    value_scale,
    cap,
    table_stride,
    num_seqs,
    WINDOW: tl.constexpr,  # 0: none
    CAP: tl.constexpr,
    SINKS: tl.constexpr,
    ENDS: tl.constexpr,
    SPLIT: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    DV: tl.constexpr,
    DV_PAD: tl.constexpr,
    DECODE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
):
    LOG2E: tl.constexpr = 1.4426950408889634
    KV_HEADS: tl.constexpr = HEADS // GROUP
    kv_head = tl.program_id(1)
    if DECODE:
        seq = tl.program_id(0)
        first_token = tl.load(query_start_loc + seq)
        first_query = 0
    else:  # the last queries first: theirs is the longest context, and whoever starts last should have the shortest
        query_tile = tl.num_programs(0) - 1 - tl.program_id(0)
        seq = _sequence_of(query_tile, query_start_loc, num_seqs, BLOCK_Q)
        first_token = tl.load(query_start_loc + seq)
        first_query = (query_tile - first_token // BLOCK_Q - seq) * BLOCK_Q
    query_len = tl.load(query_start_loc + seq + 1) - first_token
    if first_query >= query_len:
        return
    seq_len = tl.load(seq_lens + seq)
    past = seq_len - query_len

    # Row m is query first_query + m // GROUP, head kv_head * GROUP + m % GROUP.
    m = tl.arange(0, BLOCK_M)
    query = first_query + m // GROUP
    head = kv_head * GROUP + m % GROUP
    real = (m // GROUP < BLOCK_Q) & (query < query_len)
    row = (first_token + query).to(tl.int64) * HEADS + head
    d = tl.arange(0, D_PAD)
    dv = tl.arange(0, DV_PAD)
    queries = tl.load(q + row[:, None] * D + d[None, :], mask=real[:, None] & (d < D)[None, :], other=0.0)
    position = past + query
    if ENDS:
        end = tl.minimum(tl.load(ends + first_token + query, mask=real, other=0), seq_len)
        last_end = tl.max(end)
    else:
        end = tl.minimum(position + 1, seq_len)
        last_end = tl.minimum(past + first_query + BLOCK_Q, seq_len)

    first_tile = 0
    if WINDOW:
        first_tile = tl.maximum(past + first_query - WINDOW + 1, 0) // TILE
    last_tile = tl.cdiv(last_end, TILE)
    split = tl.program_id(2)
    if SPLIT:
        share = tl.cdiv(last_tile - first_tile, tl.num_programs(2))
        first_tile += split * share
        last_tile = tl.minimum(first_tile + share, last_tile)

    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DV_PAD], tl.float32)
    if SINKS:
        if split == 0:
            largest = tl.load(sinks + head, mask=real, other=0.0).to(tl.float32) * LOG2E
            total += 1.0

    # Tiles that all rows see whole come first, without masks; where most have an edge, all are masked.
    ALL_MASKED: tl.constexpr = 1 if DECODE or WINDOW or ENDS else 0
    whole = first_tile if ALL_MASKED else tl.minimum((past + first_query + 1) // TILE, last_tile)
    t = tl.arange(0, TILE)
    table = block_tables + seq * table_stride.to(tl.int64)
    factor = LOG2E if CAP else scale * LOG2E
    for masked in tl.static_range(ALL_MASKED, 2):
        begin = whole if masked else first_tile
        # Blocks are looked up a tile ahead: were their numbers read where keys and values are, Triton's pipeline would
        # ask for these only when the tile before is done with.
        block = tl.load(table + (begin * TILE + t) // BLOCK_SIZE, mask=begin * TILE + t < seq_len, other=0)
        for tile in range(begin, last_tile if masked else whole):
            at = tile * TILE + t
            slot = (block.to(tl.int64) * KV_HEADS + kv_head) * BLOCK_SIZE + at % BLOCK_SIZE
            block = tl.load(table + (at + TILE) // BLOCK_SIZE, mask=at + TILE < seq_len, other=0)
            exists = at < (seq_len if masked else (tile + 1) * TILE)
            k = tl.load(keys + slot[None, :] * D + d[:, None], mask=exists[None, :] & (d < D)[:, None], other=0.0)
            scores = tl.dot(queries, k.to(queries.dtype), input_precision="ieee")
            if CAP:
                scores = _cap(scores * scale, cap)
            if masked:
                seen = at[None, :] < end[:, None]
                if WINDOW:
                    seen &= at[None, :] > position[:, None] - WINDOW
                scores = tl.where(seen, scores, float("-inf"))

            new_largest = tl.maximum(largest, tl.max(scores, 1) * factor)
            # A row that has seen nothing yet keeps -inf; subtracting 0 instead avoids -inf - -inf.
            shift = tl.where(new_largest == float("-inf"), 0.0, new_largest) if masked else new_largest
            p = tl.exp2(scores * factor - shift[:, None])
            shrink = tl.exp2(largest - shift)
            total = total * shrink + tl.sum(p, 1)
            v = tl.load(values + slot[:, None] * DV + dv[None, :], mask=exists[:, None] & (dv < DV)[None, :], other=0.0)
            acc = acc * shrink[:, None] + tl.dot(p.to(queries.dtype), v.to(queries.dtype), input_precision="ieee")
            largest = new_largest

    store = real[:, None] & (dv < DV)[None, :]
    acc *= value_scale
    if SPLIT:
        part = row * tl.num_programs(2) + split
        tl.store(out + part[:, None] * DV + dv[None, :], acc, mask=store)
        tl.store(sums + part * 2, largest, mask=real)
        tl.store(sums + part * 2 + 1, total, mask=real)
    else:
        acc = acc / tl.where(real, total, 1.0)[:, None]
        tl.store(out + row[:, None] * DV + dv[None, :], acc.to(out.dtype.element_ty), mask=store)


@triton.jit(do_not_specialize=["splits"])
def merge_splits(
    out,  # [T, Hq, DV]
    parts,  # float32 [T, Hq, splits, DV]
    sums,  # float32 [T, Hq, splits, 2]
    splits,
    HEADS: tl.constexpr,
    DV: tl.constexpr,
    DV_PAD: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)
    s = tl.arange(0, SPLITS_PAD)
    dv = tl.arange(0, DV_PAD)
    exists = s < splits
    largest = tl.load(sums + (row * splits + s) * 2, mask=exists, other=float("-inf"))
    total = tl.load(sums + (row * splits + s) * 2 + 1, mask=exists, other=0.0)
    # An empty split has -inf and 0; the split with the token itself is never empty, so the maximum is finite.
    weight = tl.exp2(largest - tl.max(largest, 0))
    part = tl.load(
        parts + (row * splits + s)[:, None] * DV + dv[None, :], mask=exists[:, None] & (dv < DV)[None, :], other=0.0
    )
    acc = tl.sum(part * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(out + row * DV + dv, acc.to(out.dtype.element_ty), mask=dv < DV)


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
    sinks: Tensor | None = None,
    ends: Tensor | None = None,
    splits: int | None = None,
) -> Tensor:
    """As `reference.attention`: q [T, Hq * D] -> [T, Hq * DV].

    sinks [Hq]: one more logit a head in the softmax, which adds nothing to the sum (gpt-oss). ends int32 [T]: one past
    the last position a token sees, for spans that see each other both ways (an image's tokens, which must be in one
    step); None: each token sees up to itself. splits: parts a decoding context is cut into; None: by the number of
    processors.
    """
    num_tokens, num_seqs = q.shape[0], batch.seq_lens.shape[0]
    value_dim = kv.values.shape[3]
    group = num_heads // num_kv_heads
    decoding = batch.max_query_len == 1
    tiles = attention_tiles(head_dim, kv.keys.element_size(), group, decoding, gpu_of(q.device))
    if splits is None:
        splits = num_splits(num_seqs * num_kv_heads, batch.max_seq_len, tiles.tile, gpu_of(q.device)) if decoding else 1
    splits = min(splits, MAX_SPLITS)

    out = torch.empty(num_tokens, num_heads * value_dim, dtype=q.dtype, device=q.device)
    target, sums = out, out
    if splits > 1:
        target = torch.empty(num_tokens, num_heads, splits, value_dim, dtype=torch.float32, device=q.device)
        sums = torch.empty(num_tokens, num_heads, splits, 2, dtype=torch.float32, device=q.device)
    options: dict[str, Any] = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    query_tiles = num_seqs if decoding else num_tokens // tiles.block_q + num_seqs
    attention_kernel[(query_tiles, num_kv_heads, splits)](
        target,
        sums,
        q,
        kv.keys,
        kv.values,
        batch.block_tables,
        batch.seq_lens,
        batch.query_start_loc,
        batch.seq_lens if ends is None else ends,
        q if sinks is None else sinks,
        scale * kv.key_scale,
        kv.value_scale,
        softcap or 0.0,
        batch.block_tables.stride(0),
        num_seqs,
        WINDOW=sliding_window or 0,
        CAP=softcap is not None,
        SINKS=sinks is not None,
        ENDS=ends is not None,
        SPLIT=splits > 1,
        HEADS=num_heads,
        GROUP=group,
        BLOCK_SIZE=kv.block_size,
        D=head_dim,
        D_PAD=padded(head_dim),
        DV=value_dim,
        DV_PAD=padded(value_dim),
        DECODE=decoding,
        BLOCK_Q=tiles.block_q,
        BLOCK_M=tiles.block_m,
        TILE=tiles.tile,
        **options,
    )
    if splits > 1:
        merge_splits[(num_tokens, num_heads)](
            out,
            target,
            sums,
            splits,
            HEADS=num_heads,
            DV=value_dim,
            DV_PAD=padded(value_dim),
            SPLITS_PAD=MAX_SPLITS,
        )
    return out
