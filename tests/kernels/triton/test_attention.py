"""The unified attention kernel, interpreted, against dense attention one query after the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton import knobs

from vllm_nb.kernels import reference
from vllm_nb.kernels import triton as kernels

DEVICE = torch.device("cpu" if knobs.runtime.interpret else "cuda")
# The interpreter computes bfloat16 wrongly (triton issue 4972), so that type is for a GPU.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE.type == "cuda")
EXACT = 2e-6 if DEVICE.type == "cpu" else 1e-5  # a GPU's powers of 2 and quotients are approximate
TOLERANCE = {torch.float32: EXACT, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def dense(context, q, *, scale, window=None, softcap=None, sinks=None, ends=None):
    """q [T, Hq, D] -> [T, Hq, DV], in float64."""
    out, at = [], 0
    for s, (k, v) in enumerate(zip(context.keys, context.values, strict=True)):
        queries = int(context.batch.query_start_loc[s + 1] - context.batch.query_start_loc[s])
        for i in range(queries):
            position = len(k) - queries + i
            end = position + 1 if ends is None else int(ends[at])
            first = 0 if window is None else max(0, position + 1 - window)
            group = q.shape[1] // k.shape[1]
            heads = []
            for h in range(q.shape[1]):
                scores = k[first:end, h // group].double() @ q[at, h].double() * scale
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                if sinks is not None:
                    scores = torch.cat((scores, sinks[h : h + 1].double()))
                p = scores.softmax(0)[: end - first]
                heads.append(p @ v[first:end, h // group].double())
            out.append(torch.stack(heads))
            at += 1
    return torch.stack(out)


def run(context, q, *, kv_heads, scale=0.3, window=None, softcap=None, **options):
    return kernels.attention(
        q.flatten(1), context.kv, context.batch, num_heads=q.shape[1], num_kv_heads=kv_heads, head_dim=q.shape[2],
        scale=scale, sliding_window=window, softcap=softcap, **options,
    ).unflatten(1, (q.shape[1], -1))  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_mixture_equals_dense_attention(make_context, data):
    lens = st.tuples(st.integers(0, 20), st.integers(0, 40)).filter(lambda pair: sum(pair) > 0)
    sequences = data.draw(st.lists(lens, min_size=1, max_size=3).filter(lambda pairs: sum(q for q, _ in pairs) > 0))
    kv_heads, group = data.draw(st.sampled_from([(1, 1), (2, 3), (1, 7), (2, 4)]))
    dtype = data.draw(st.sampled_from(DTYPES))
    options = {
        "window": data.draw(st.sampled_from([None, 1, 5, 1000])),
        "softcap": data.draw(st.sampled_from([None, 2.0])),
        "sinks": data.draw(st.sampled_from([None, torch.linspace(-1, 2, kv_heads * group)])),
    }
    context = make_context(
        [q for q, _ in sequences], [q + past for q, past in sequences], kv_heads=kv_heads, dtype=dtype,
        head_dim=data.draw(st.sampled_from([16, 20])), block_size=data.draw(st.sampled_from([16, 32])),
        seed=data.draw(st.integers(0, 1000)),
    )  # fmt: skip
    q = torch.randn(context.batch.num_tokens, kv_heads * group, context.kv.keys.shape[3]).to(dtype)
    expected = dense(context, q, scale=0.3, **options)
    torch.testing.assert_close(
        run(context, q, kv_heads=kv_heads, **options).double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize(("head_dim", "value_dim"), [(64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256)])
@pytest.mark.parametrize("query_lens", [[1, 1], [19, 1]], ids=["decode", "mixed"])
def test_head_sizes(make_context, head_dim, value_dim, query_lens):
    context = make_context(query_lens, [70, 33], kv_heads=2, head_dim=head_dim, value_dim=value_dim)
    q = torch.randn(context.batch.num_tokens, 8, head_dim)
    expected = dense(context, q, scale=head_dim**-0.5)
    torch.testing.assert_close(
        run(context, q, kv_heads=2, scale=head_dim**-0.5).double(), expected, atol=2 * EXACT, rtol=1e-5
    )


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=3),
    splits=st.integers(2, 9),
    window=st.sampled_from([None, 3, 100]),
    sinks=st.booleans(),
)
def test_a_context_cut_into_splits_gives_the_same(make_context, lengths, splits, window, sinks):
    """Some splits of the shorter sequences are empty: they must not add NaN."""
    context = make_context([1] * len(lengths), lengths, kv_heads=2)
    q = torch.randn(len(lengths), 6, 16)
    options = {"window": window, "sinks": torch.linspace(-2, 2, 6) if sinks else None}
    whole = run(context, q, kv_heads=2, splits=1, **options)
    torch.testing.assert_close(run(context, q, kv_heads=2, splits=splits, **options), whole, atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(whole.double(), dense(context, q, scale=0.3, **options), atol=EXACT, rtol=EXACT)


def test_tokens_of_an_image_see_each_other(make_context):
    """Positions 4 to 9 are a span: each of its tokens sees up to 9; the others are causal."""
    context = make_context([14], [14], kv_heads=1)
    ends = torch.tensor([10 if 4 <= p < 10 else p + 1 for p in range(14)], dtype=torch.int32)
    q = torch.randn(14, 2, 16)
    expected = dense(context, q, scale=0.3, ends=ends)
    torch.testing.assert_close(run(context, q, kv_heads=1, ends=ends).double(), expected, atol=EXACT, rtol=EXACT)
    assert not torch.allclose(run(context, q, kv_heads=1).double(), expected, atol=1e-3)


def test_an_8_bit_cache_is_read_with_its_scales(make_context):
    context = make_context([1, 5], [40, 5], kv_heads=2, kv_dtype=torch.float8_e4m3fn)
    scaled = kernels.KVCache(context.kv.keys, context.kv.values, key_scale=0.5, value_scale=2.0)
    context.kv = scaled
    context.keys = [k * 0.5 for k in context.keys]
    context.values = [v * 2.0 for v in context.values]
    q = torch.randn(6, 4, 16)
    torch.testing.assert_close(
        run(context, q, kv_heads=2).double(), dense(context, q, scale=0.3), atol=2 * EXACT, rtol=2 * EXACT
    )


def test_a_context_longer_than_32_bits_of_bytes_is_addressed(make_context):
    """Block numbers times a block's size exceed 31 bits in a large cache: offsets are 64 bits wide."""
    context = make_context([1], [16])
    stride = context.kv.keys.shape[2] * context.kv.keys.shape[3]
    far = 2**31 // stride + 5
    keys = torch.empty_strided((far + 1, 1, 16, 16), (stride, stride, 16, 1), dtype=torch.float16)
    assert keys.numel() > 2**31
    values = torch.empty_like(keys)
    block = int(context.batch.block_tables[0, 0])
    keys[far], values[far] = context.kv.keys[block].half(), context.kv.values[block].half()
    context.kv = kernels.KVCache(keys, values)
    context.keys, context.values = [[k.half().float() for k in x] for x in (context.keys, context.values)]
    context.batch.block_tables[0, 0] = far
    q = torch.randn(1, 1, 16).half()
    torch.testing.assert_close(run(context, q, kv_heads=1).double(), dense(context, q, scale=0.3), atol=4e-3, rtol=4e-3)


@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 5),
    heads=st.sampled_from([(1, 1), (4, 2)]),
    dim=st.sampled_from([(16, 16), (20, 8), (32, 20)]),
    norm=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_rope_and_cache_equals_the_reference(tokens, heads, dim, norm, dtype):
    (num_heads, kv_heads), (head_dim, rotary) = heads, dim
    qkv = torch.randn(tokens, (num_heads + 2 * kv_heads) * head_dim).to(dtype)
    slots = torch.randperm(48)[:tokens].int()
    slots[0] = -1  # padding
    cos_sin = torch.randn(64, rotary)
    weights = {"q_norm": torch.rand(head_dim), "k_norm": torch.rand(head_dim), "eps": 1e-5} if norm else {}
    shape = {"num_heads": num_heads, "num_kv_heads": kv_heads, "head_dim": head_dim}
    positions = torch.randint(0, 64, (tokens,), dtype=torch.int32)
    ours = kernels.allocate_kv(3, 16, kv_heads, head_dim, dtype, DEVICE)
    theirs = reference.allocate_kv(3, 16, kv_heads, head_dim, dtype, DEVICE)
    for memory in (ours.keys, ours.values, theirs.blocks):
        memory.fill_(7)
    q = kernels.rope_and_cache(qkv, positions, slots, cos_sin, ours, **shape, **weights)
    expected = reference.rope_and_cache(qkv, positions, slots, cos_sin, theirs, **shape, **weights)
    close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(q, expected, **close)
    torch.testing.assert_close(ours.keys.transpose(1, 2), theirs.blocks[0], **close)
    torch.testing.assert_close(ours.values.transpose(1, 2), theirs.blocks[1], **close)


def test_a_block_size_that_no_tile_fits_is_refused():
    with pytest.raises(ValueError, match="multiple of 16 tokens, not 20"):
        kernels.allocate_kv(1, 20, 1, 16, torch.float16, DEVICE)
