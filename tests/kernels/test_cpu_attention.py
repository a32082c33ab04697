"""Rotary embedding, cache writes and paged attention against the reference backend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nb.engine.batch import Batch
from vllm_nb.kernels import cpu, reference

BLOCK = 16
CPU = torch.device("cpu")


def int32(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.int32)


def in_8_bits(x, group):
    """x [T, H, D] as the cache keeps it: integers up to 127 times a float16 scale for `group` dimensions each."""
    parts = []
    for part in x.split(group, -1):
        scale = (part.abs().amax(-1, keepdim=True).double() * (1.0005 / 127)).float().half().double()
        parts.append(((part * (1 / scale).float()).round().clamp(-127, 127) * scale).float())
    return torch.cat(parts, -1)


def queries_in_8_bits(q, head_dim):
    """q [T, Hq * D] as it enters products with an 8-bit cache: integers up to 127 times a scale for 32 dimensions."""
    parts = []
    for part in q.unflatten(-1, (-1, head_dim)).split(32, -1):
        greatest = part.abs().amax(-1, keepdim=True)
        parts.append((part * (127 / greatest.double()).float()).round() * (greatest / 127))
    return torch.cat(parts, -1).flatten(1)


class Pages:
    """Sequences with their tokens' keys and values in both backends' caches, in shuffled blocks."""

    def __init__(self, lengths, heads, kv_heads, head_dim, dtype, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.lengths, self.dtype = lengths, dtype
        self.shape = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": head_dim}
        counts = [-(-n // BLOCK) for n in lengths]
        shuffled = torch.randperm(sum(counts), generator=self.generator).tolist()
        self.tables = torch.full((len(lengths), max(counts)), -1, dtype=torch.int32)
        for row, count in enumerate(counts):
            self.tables[row, :count] = int32([shuffled.pop() for _ in range(count)])
        self.caches = [
            cpu.allocate_kv(sum(counts), BLOCK, kv_heads, head_dim, dtype, CPU),
            reference.allocate_kv(
                sum(counts), BLOCK, kv_heads, head_dim, dtype if dtype.is_floating_point else torch.float32, CPU
            ),
        ]
        for memory in (self.caches[0].keys, self.caches[0].values):  # if never written it must not reach any result
            memory.fill_(127) if dtype == torch.int8 else memory.fill_(torch.nan)  # 127, 127: a NaN among the scales
        self.caches[1].blocks.fill_(torch.nan)
        self.queries = [self.write(row, length) for row, length in enumerate(lengths)]

    def random(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def batch(self, rows, counts, lengths) -> Batch:
        """The last counts[i] tokens before position lengths[i] of sequence rows[i]."""
        starts, positions, slots = [0], [], []
        for row, count, length in zip(rows, counts, lengths, strict=True):
            new = torch.arange(length - count, length)
            positions.append(new)
            slots.append(self.tables[row, new // BLOCK] * BLOCK + new % BLOCK)
            starts.append(starts[-1] + count)
        total = starts[-1]
        return Batch(
            int32([0] * total), int32([0] * total), int32(torch.cat(positions)), int32(torch.cat(slots)),
            int32(starts), int32(lengths), self.tables[rows], int32([s - 1 for s in starts[1:]]), total, len(rows),
            len(rows), max(counts), max(lengths),
        )  # fmt: skip

    def write(self, row, length):
        """Random q, k and v for all of a sequence; k and v into both caches. Returns q [length, Hq * D]."""
        heads, kv_heads, head_dim = self.shape.values()
        qkv = self.random(length, (heads + 2 * kv_heads) * head_dim)
        batch = self.batch([row], [length], [length])
        no_turn = torch.cat([torch.ones(length, head_dim // 2), torch.zeros(length, head_dim - head_dim // 2)], 1)
        q, _ = (
            backend.rope_and_cache(qkv, batch.positions, batch.slot_mapping, no_turn, kv, **self.shape)
            for backend, kv in zip((cpu, reference), self.caches, strict=True)
        )
        assert torch.equal(q, qkv[:, : heads * head_dim])
        if self.dtype == torch.int8:
            _, k, v = qkv.view(length, -1, head_dim).split([heads, kv_heads, kv_heads], 1)
            self.caches[1].write(batch.slot_mapping, in_8_bits(k, 32), in_8_bits(v, head_dim))
        return q

    def attend(self, backend, rows, counts, lengths, **settings):
        q = torch.cat([self.queries[r][n - c : n] for r, c, n in zip(rows, counts, lengths, strict=True)])
        if backend is reference and self.dtype == torch.int8:
            q = queries_in_8_bits(q, self.shape["head_dim"])
        kv = self.caches[0 if backend is cpu else 1]
        options = {"scale": 0.3, "sliding_window": None, "softcap": None} | settings
        return backend.attention(q, kv, self.batch(rows, counts, lengths), **self.shape, **options)


# bfloat16 rounds queries and probabilities too: a few units of its last place. 8 bits: probabilities have 16
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.int8: 2e-3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(9, 3, 64), (4, 1, 256), (8, 8, 80), (14, 2, 96), (4, 4, 20)]
)
def test_attention_equals_the_reference(dtype, heads, kv_heads, head_dim):
    pages = Pages([300, 17, 1], heads, kv_heads, head_dim, dtype)
    for counts in ([1, 1, 1], [300, 17, 1], [37, 3, 1]):
        for settings_ in ({}, {"sliding_window": 50}, {"softcap": 5.0}):
            ours, theirs = (
                pages.attend(backend, [0, 1, 2], counts, pages.lengths, **settings_) for backend in (cpu, reference)
            )
            torch.testing.assert_close(ours, theirs, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_broken_key_reaches_nobody_before_its_partition(dtype):
    """In a chunk that begins with the second token, so that a tile of eight rows has some of the token before."""
    pages = Pages([300], 3, 1, 32, dtype)
    broken, kv = pages.batch([0], [1], [257]), pages.caches[0]
    no_turn = torch.cat([torch.ones(300, 16), torch.zeros(300, 16)], 1)
    nan = torch.full((1, (3 + 2) * 32), torch.nan)
    cpu.rope_and_cache(nan, broken.positions, broken.slot_mapping, no_turn, kv, **pages.shape)
    rows = pages.attend(cpu, [0], [299], [300]).isnan().any(1)
    assert not rows[:255].any()
    assert rows[255]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_query_is_the_same_bits_in_any_batch(data):
    """Alone, in a chunk of its prompt, beside others; with partitions on one thread or on several."""
    lengths = data.draw(st.lists(st.integers(1, 400), min_size=2, max_size=4))
    window = data.draw(st.sampled_from([None, 1, 30, 129]))
    kv_heads, group = data.draw(st.sampled_from([(1, 1), (1, 4), (3, 3), (2, 8)]))
    dtype = data.draw(st.sampled_from([torch.int8, torch.bfloat16]))
    pages = Pages(lengths, kv_heads * group, kv_heads, 32, dtype, seed=data.draw(st.integers(0, 99)))
    rows = list(range(len(lengths)))
    whole = pages.attend(cpu, rows, lengths, lengths, sliding_window=window)
    starts = [sum(lengths[:row]) for row in rows]

    row = data.draw(st.sampled_from(rows))
    end = data.draw(st.integers(1, lengths[row]))
    count = data.draw(st.integers(1, end))
    chunk = pages.attend(cpu, [row], [count], [end], sliding_window=window)
    assert torch.equal(chunk, whole[starts[row] + end - count : starts[row] + end])

    last = pages.attend(cpu, rows, [1] * len(rows), lengths, sliding_window=window)
    assert torch.equal(last, whole[[start + n - 1 for start, n in zip(starts, lengths, strict=True)]])


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_long_contexts_split_over_threads_stay_the_same_bits(dtype):
    pages = Pages([2500], 4, 1, 64, dtype)
    split = pages.attend(cpu, [0], [1], [2500])
    threads = cpu.describe()["threads"]
    cpu.set_threads(1)
    try:
        assert torch.equal(split, pages.attend(cpu, [0], [1], [2500]))
    finally:
        cpu.set_threads(threads)
    theirs = pages.attend(reference, [0], [1], [2500])
    torch.testing.assert_close(split, theirs, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_another_requests_nan_stays_its_own(dtype):
    """A block that held NaN is reused: what the new owner has not written yet must not matter."""
    pages = Pages([20, 40], 4, 2, 32, dtype)
    expected = pages.attend(cpu, [0], [1], [20])
    heads, kv_heads, head_dim = pages.shape.values()
    slots = int32([int(pages.tables[0, 1]) * BLOCK + offset for offset in range(4, 16)])
    poison = torch.full((12, (heads + 2 * kv_heads) * head_dim), torch.nan)
    table = torch.zeros(12, head_dim)
    cpu.rope_and_cache(poison, int32(range(12)), slots, table, pages.caches[0], **pages.shape)
    assert torch.equal(pages.attend(cpu, [0], [1], [20]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (80, 80), (96, 48), (256, 256), (20, 12)])
@pytest.mark.parametrize("norm", [False, True])
def test_rope_and_cache_equals_the_reference(dtype, head_dim, rotary_dim, norm):
    heads, kv_heads, tokens = 5, 2, 40
    generator = torch.Generator().manual_seed(3)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, generator=generator)
    angles = torch.rand(100, rotary_dim // 2, generator=generator) * 6
    table = torch.cat([angles.cos(), angles.sin()], 1)
    positions = torch.randperm(100, generator=generator)[:tokens].int()
    slots = torch.randperm(64, generator=generator)[:tokens].int()
    slots[7] = -1
    norms = {}
    if norm:
        norms = {"q_norm": torch.rand(head_dim) + 0.5, "k_norm": torch.rand(head_dim) + 0.5, "eps": 1e-6}
    shape = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": head_dim}
    ours = cpu.allocate_kv(4, BLOCK, kv_heads, head_dim, dtype, CPU)
    theirs = reference.allocate_kv(4, BLOCK, kv_heads, head_dim, dtype, CPU)
    for memory in (ours.keys, ours.values, theirs.blocks):
        memory.zero_()
    q = cpu.rope_and_cache(qkv, positions, slots, table, ours, **shape, **norms)
    expected = reference.rope_and_cache(qkv, positions, slots, table, theirs, **shape, **norms)
    torch.testing.assert_close(q, expected, atol=2e-6, rtol=2e-6)

    width = -(-head_dim // 16) * 16
    pair = 2 if dtype == torch.bfloat16 else 1
    keys = ours.keys.view(kv_heads, 4, width // pair, BLOCK, pair).permute(1, 3, 0, 2, 4).reshape(64, kv_heads, width)
    values = ours.values.view(kv_heads, 4, width // 16, BLOCK // pair, 16, pair)
    values = values.permute(1, 3, 5, 0, 2, 4).reshape(64, kv_heads, width)
    rounding = 1e-2 if dtype == torch.bfloat16 else 2e-6
    torch.testing.assert_close(keys[..., :head_dim], theirs.keys, atol=rounding, rtol=rounding)
    assert torch.equal(values[..., :head_dim], theirs.values)


def test_cache_sizes_that_do_not_work_are_refused():
    with pytest.raises(ValueError, match="multiple of 16 tokens, not 8"):
        cpu.allocate_kv(4, 8, 1, 64, torch.bfloat16, CPU)
    with pytest.raises(ValueError, match="float64"):
        cpu.allocate_kv(4, 16, 1, 64, torch.float64, CPU)
