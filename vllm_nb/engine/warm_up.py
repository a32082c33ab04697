"""Steps that nobody asked for: they compile a GPU's kernels before the first request, and show what a step takes.

Kernels are compiled by the kind of step (prefill or decode) and by power of two of its tokens up to 128, never by the
exact numbers, so these few batches cover all that requests can bring; a test counts.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from vllm_nb.engine.batch import Batch
from vllm_nb.engine.capacity import Capacity
from vllm_nb.engine.placement import Placement

_TOKENS = (2, 4, 16, 32, 64, 128)


def warm_up_batches(capacity: Capacity) -> Iterator[Batch]:
    """A decode step, then a prompt of each size, with one row of logits and with the most there may be; on the CPU."""
    most = capacity.max_num_batched_tokens
    yield _batch(1, 1)
    for tokens in sorted({min(n, most) for n in (*_TOKENS, most)}):
        yield _batch(tokens, 1)
        yield _batch(tokens, min(tokens, capacity.max_logits))


def warm_up_sampling(kernels: Any, logits: torch.Tensor, tokens: torch.Tensor) -> None:
    """logits [1, vocab]; tokens: those of the rows."""
    one = torch.ones(1, device=logits.device)
    long, zero = one.long(), one.long() * 0
    kernels.penalize(logits.clone(), zero, tokens, zero, zero, zero, one, one, one)
    kernels.sample(logits.clone(), one, one.int(), one / 2, one * 0, kernels.uniforms(long, long))
    kernels.token_logprobs(logits, one.int(), 2)


@torch.inference_mode()
def profile_step(model: Any, capacity: Capacity, placement: Placement) -> int:
    """Bytes that the largest step takes on a CUDA device besides weights and KV cache."""
    config = model.config
    shape = (1, capacity.block_size, config.num_kv_heads, config.head_dim, placement.kv_dtype, placement.device)
    kv = [placement.kernels.allocate_kv(*shape) for _ in range(config.num_layers)]
    batch = _batch(capacity.max_num_batched_tokens, min(capacity.max_num_batched_tokens, capacity.max_logits))
    torch.cuda.synchronize(placement.device)
    torch.cuda.reset_peak_memory_stats(placement.device)
    before = torch.cuda.memory_allocated(placement.device)
    model.forward(batch.to(placement.device), kv)
    torch.cuda.synchronize(placement.device)
    return torch.cuda.max_memory_allocated(placement.device) - before


def _batch(tokens: int, num_logits: int) -> Batch:
    """One sequence of padding: its keys are not written, and all of its blocks are block 0."""
    positions = torch.from_numpy(np.arange(tokens, dtype=np.int32))
    zeros = torch.zeros_like(positions)
    return Batch(
        token_ids=zeros,
        token_rows=zeros,
        positions=positions,
        slot_mapping=zeros - 1,
        query_start_loc=torch.from_numpy(np.array([0, tokens], np.int32)),
        seq_lens=torch.from_numpy(np.array([tokens], np.int32)),
        block_tables=zeros[None],
        logits_indices=positions[tokens - num_logits :],
        num_tokens=tokens,
        num_seqs=1,
        num_logits=num_logits,
        max_query_len=tokens,
        max_seq_len=tokens,
    )
