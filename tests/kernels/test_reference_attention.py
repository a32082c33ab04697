"""Rotary embedding, cache writes and paged attention against transformers and dense PyTorch attention."""

from importlib import import_module

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from vllm_nb.engine.batch import Batch
from vllm_nb.kernels import reference

CPU = torch.device("cpu")
BLOCK = 16
attention_module = import_module("vllm_nb.kernels.reference.attention")  # the package has a function of that name


def int32(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.int32)


def make_batch(query_lens: list[int], seq_lens: list[int], generator: torch.Generator) -> tuple[Batch, int]:
    """A batch whose sequences lie in shuffled blocks, one spare block among them; with the number of blocks."""
    counts = [-(-n // BLOCK) for n in seq_lens]
    num_blocks = sum(counts) + 1
    shuffled = torch.randperm(num_blocks, generator=generator).tolist()
    tables = torch.full((len(seq_lens), max(counts)), -1, dtype=torch.int32)
    slots, positions, starts = [], [], [0]
    for row, (queries, length, count) in enumerate(zip(query_lens, seq_lens, counts, strict=True)):
        blocks = [shuffled.pop() for _ in range(count)]
        tables[row, :count] = int32(blocks)
        new = range(length - queries, length)
        positions += new
        slots += [blocks[p // BLOCK] * BLOCK + p % BLOCK for p in new]
        starts.append(starts[-1] + queries)
    batch = Batch(
        token_ids=int32([0] * starts[-1]),
        token_rows=int32([s for s, length in enumerate(query_lens) for _ in range(length)]),
        positions=int32(positions),
        slot_mapping=int32(slots),
        query_start_loc=int32(starts),
        seq_lens=int32(seq_lens),
        block_tables=tables,
        logits_indices=int32([end - 1 for end in starts[1:]]),
        num_tokens=starts[-1],
        num_seqs=len(seq_lens),
        num_logits=len(seq_lens),
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
    )
    return batch, num_blocks


def dense_attention(q, k, v, scale, window, softcap):
    """q [L, Hq, D], k and v [n, Hkv, D], one head and one query after the other. Returns [L, Hq, D]."""
    out = torch.empty_like(q)
    group, offset = q.shape[1] // k.shape[1], k.shape[0] - q.shape[0]
    for i in range(q.shape[0]):
        first = 0 if window is None else max(0, offset + i + 1 - window)
        seen = slice(first, offset + i + 1)
        for h in range(q.shape[1]):
            scores = k[seen, h // group] @ q[i, h] * scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            out[i, h] = scores.softmax(0) @ v[seen, h // group]
    return out


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_paged_attention_equals_dense_attention(data):
    sequences = data.draw(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=1, max_size=4))
    if data.draw(st.booleans(), label="decode only"):
        sequences = [(1, past) for _, past in sequences]
    num_kv_heads, group = data.draw(st.sampled_from([(1, 1), (2, 1), (2, 3), (1, 7), (3, 4)]))
    head_dim = data.draw(st.sampled_from([8, 20]))
    window = data.draw(st.sampled_from([None, 1, 5, 17, 1000]))
    softcap = data.draw(st.sampled_from([None, 2.0]))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    tile = data.draw(st.sampled_from([7, 256]))

    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    query_lens = [queries for queries, _ in sequences]
    seq_lens = [queries + past for queries, past in sequences]
    batch, num_blocks = make_batch(query_lens, seq_lens, generator)
    kv = reference.allocate_kv(num_blocks, BLOCK, num_kv_heads, head_dim, dtype, CPU)
    kv.blocks.fill_(torch.nan)  # memory never written must not reach any result

    q = torch.randn(batch.num_tokens, num_kv_heads * group, head_dim, dtype=dtype, generator=generator)
    expected, starts = torch.empty_like(q), batch.query_start_loc.tolist()
    for row, length in enumerate(seq_lens):
        k, v = torch.randn(2, length, num_kv_heads, head_dim, dtype=dtype, generator=generator)
        at = torch.arange(length)
        kv.write(batch.block_tables[row, at // BLOCK] * BLOCK + at % BLOCK, k, v)
        mine = slice(starts[row], starts[row + 1])
        expected[mine] = dense_attention(q[mine], k, v, 0.3, window, softcap)

    before, attention_module.QUERY_TILE = attention_module.QUERY_TILE, tile
    try:
        ours = reference.attention(
            q.flatten(1),
            kv,
            batch,
            num_heads=num_kv_heads * group,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            scale=0.3,
            sliding_window=window,
            softcap=softcap,
        )
    finally:
        attention_module.QUERY_TILE = before
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(ours, expected.flatten(1), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("query_len", [1, 9])
def test_half_precision_attention_accumulates_in_float32(dtype, query_len):
    generator = torch.Generator().manual_seed(0)
    batch, num_blocks = make_batch([query_len], [200], generator)
    kv = reference.allocate_kv(num_blocks, BLOCK, 1, 64, dtype, CPU)
    k, v = torch.randn(2, 200, 1, 64, generator=generator).to(dtype)
    at = torch.arange(200)
    kv.write(batch.block_tables[0, at // BLOCK] * BLOCK + at % BLOCK, k, v)
    q = torch.randn(query_len, 2, 64, generator=generator).to(dtype)
    ours = reference.attention(
        q.flatten(1),
        kv,
        batch,
        num_heads=2,
        num_kv_heads=1,
        head_dim=64,
        scale=0.125,
        sliding_window=None,
        softcap=None,
    )
    exact = dense_attention(q.double(), k.double(), v.double(), 0.125, None, None).to(dtype)
    assert ours.dtype == dtype
    # One rounding at the end: at most a neighbour of the exact result rounded.
    torch.testing.assert_close(ours, exact.flatten(1), rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rotary_dim", [16, 10])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_and_cache(dtype, rotary_dim, normed):
    num_heads, num_kv_heads, head_dim = 6, 2, 16
    torch.manual_seed(0)
    qkv = torch.randn(5, 10 * head_dim, dtype=dtype)
    positions = int32([3, 4, 0, 1, 30])
    slots = int32([35, 36, 0, -1, 14])
    angles = torch.rand(40, rotary_dim // 2)
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1)
    q_norm, k_norm = torch.rand(2, head_dim) + 0.5
    kv = reference.allocate_kv(3, BLOCK, num_kv_heads, head_dim, dtype, CPU)
    kv.blocks.fill_(-7)
    ours = reference.rope_and_cache(
        qkv,
        positions,
        slots,
        cos_sin,
        kv,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        q_norm=q_norm if normed else None,
        k_norm=k_norm if normed else None,
        eps=1e-6,
    )

    q, k, v = qkv.double().view(5, 10, head_dim).split((num_heads, num_kv_heads, num_kv_heads), 1)
    if normed:
        q = torch.nn.functional.rms_norm(q, (head_dim,), q_norm.double(), 1e-6)
        k = torch.nn.functional.rms_norm(k, (head_dim,), k_norm.double(), 1e-6)
    cos, sin = (table.repeat(1, 2).double()[positions] for table in (angles.cos(), angles.sin()))
    turned = apply_rotary_pos_emb(q[..., :rotary_dim], k[..., :rotary_dim], cos, sin)
    q, k = (torch.cat((x, whole[..., rotary_dim:]), -1) for x, whole in zip(turned, (q, k), strict=True))

    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    torch.testing.assert_close(ours.double(), q.flatten(1), atol=tolerance, rtol=tolerance)
    written = [35, 36, 0, 14]
    kept = [0, 1, 2, 4]
    torch.testing.assert_close(kv.keys[written].double(), k[kept], atol=tolerance, rtol=tolerance)
    assert torch.equal(kv.values[written], v[kept].to(dtype))
    untouched = [slot for slot in range(3 * BLOCK) if slot not in written]
    assert kv.keys[untouched].eq(-7).all()
    assert kv.values[untouched].eq(-7).all()


def test_allocated_cache_costs_no_memory_until_used():
    before = psutil.Process().memory_info().rss
    kv = reference.allocate_kv(4096, BLOCK, 8, 128, torch.float32, CPU)
    assert kv.nbytes == 2 * 4096 * BLOCK * 8 * 128 * 4
    assert psutil.Process().memory_info().rss - before < kv.nbytes / 10
