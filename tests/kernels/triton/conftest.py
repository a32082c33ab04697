"""What the kernels' tests share: batches in shuffled blocks, and caches whose unused slots are poisoned."""

from dataclasses import dataclass

import pytest
import torch
from triton import knobs

from vllm_nb.engine.batch import Batch
from vllm_nb.kernels import triton as kernels

# Without a GPU the kernels are interpreted on the CPU (tests/conftest.py).
DEVICE = torch.device("cpu" if knobs.runtime.interpret else "cuda")


@pytest.fixture(autouse=True, scope="session")
def _default_device():
    """Tensors are made where the kernels run."""
    before = torch.get_default_device()
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device(before)


def int32(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.int32)


@dataclass
class Context:
    """A batch, its cache, and each sequence's keys and values [n, Hkv, D] in order."""

    batch: Batch
    kv: kernels.KVCache
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


@pytest.fixture(scope="session")
def make_context():
    """make_context(query lengths, context lengths, ...) -> Context. Memory that nobody wrote holds NaN."""

    def make(
        query_lens, seq_lens, *, kv_heads=1, head_dim=16, value_dim=None, block_size=16, dtype=torch.float32, seed=0,
        kv_dtype=None,
    ) -> Context:  # fmt: skip
        generator = torch.Generator(DEVICE).manual_seed(seed)
        value_dim = value_dim or head_dim
        counts = [-(-n // block_size) for n in seq_lens]
        num_blocks = sum(counts) + 1
        kv = kernels.allocate_kv(num_blocks, block_size, kv_heads, head_dim, kv_dtype or dtype, DEVICE, value_dim)
        for memory in (kv.keys, kv.values):
            memory.fill_(torch.nan)
        shuffled = torch.randperm(num_blocks, generator=generator).tolist()
        tables = torch.full((len(seq_lens), max(*counts, 1) + 1), 2**30, dtype=torch.int32)
        starts, positions, slots, keys, values = [0], [], [], [], []
        for row, (queries, length, count) in enumerate(zip(query_lens, seq_lens, counts, strict=True)):
            blocks = [shuffled.pop() for _ in range(count)]
            tables[row, :count] = int32(blocks)
            k = torch.randn(length, kv_heads, head_dim, generator=generator).to(kv.keys.dtype)
            v = torch.randn(length, kv_heads, value_dim, generator=generator).to(kv.values.dtype)
            for p in range(length):
                kv.keys[blocks[p // block_size], :, p % block_size] = k[p]
                kv.values[blocks[p // block_size], :, p % block_size] = v[p]
            keys.append(k.float())
            values.append(v.float())
            new = range(length - queries, length)
            positions += new
            slots += [blocks[p // block_size] * block_size + p % block_size for p in new]
            starts.append(starts[-1] + queries)
        batch = Batch(
            token_ids=int32([0] * starts[-1]),
            token_rows=int32([0] * starts[-1]),
            positions=int32(positions),
            slot_mapping=int32(slots),
            query_start_loc=int32(starts),
            seq_lens=int32(seq_lens),
            block_tables=tables,
            logits_indices=int32([max(end - 1, 0) for end in starts[1:]]),
            num_tokens=starts[-1],
            num_seqs=len(seq_lens),
            num_logits=len(seq_lens),
            max_query_len=max(query_lens),
            max_seq_len=max(seq_lens),
        )
        return Context(batch, kv, keys, values)

    return make
