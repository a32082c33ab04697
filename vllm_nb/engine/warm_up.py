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
    most = _most_tokens(capacity)
    yield _batch(1, 1, capacity)
    for tokens in sorted({min(n, most) for n in (*_TOKENS, most)}):
        yield _batch(tokens, 1, capacity)
        yield _batch(tokens, min(tokens, capacity.max_logits), capacity)


def largest_batch(capacity: Capacity) -> Batch:
    """As many tokens and rows of logits as a step can have; on the CPU."""
    most = _most_tokens(capacity)
    return _batch(most, min(most, capacity.max_logits), capacity)


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
    batch = largest_batch(capacity)
    torch.cuda.synchronize(placement.device)
    torch.cuda.reset_peak_memory_stats(placement.device)
    before = torch.cuda.memory_allocated(placement.device)
    model.forward(batch.to(placement.device), kv)
    torch.cuda.synchronize(placement.device)
    return torch.cuda.max_memory_allocated(placement.device) - before


def _most_tokens(capacity: Capacity) -> int:
    """A sequence has a row of its own and no more tokens than the context."""
    return min(capacity.max_num_batched_tokens, capacity.max_num_seqs * capacity.max_model_len)


def _batch(tokens: int, num_logits: int, capacity: Capacity) -> Batch:
    """Prompts of padding: their keys are not written, and all of their blocks are block 0. As many as it takes, since
    neither the rotary table nor a row of tokens reaches beyond the context."""
    context = capacity.max_model_len
    rows, positions = np.divmod(np.arange(tokens, dtype=np.int32), np.int32(context))
    starts = np.append(np.arange(0, tokens, context, dtype=np.int32), np.int32(tokens))
    seq_lens = np.diff(starts)
    num_seqs, longest = len(seq_lens), int(seq_lens.max())
    return Batch(
        token_ids=torch.zeros(tokens, dtype=torch.int32, device="cpu"),
        token_rows=torch.from_numpy(rows),
        positions=torch.from_numpy(positions),
        slot_mapping=torch.full((tokens,), -1, dtype=torch.int32, device="cpu"),
        query_start_loc=torch.from_numpy(starts),
        seq_lens=torch.from_numpy(seq_lens),
        block_tables=torch.from_numpy(np.zeros((num_seqs, -(-longest // capacity.block_size)), np.int32)),
        logits_indices=torch.from_numpy(np.arange(tokens - num_logits, tokens, dtype=np.int32)),
        num_tokens=tokens,
        num_seqs=num_seqs,
        num_logits=num_logits,
        max_query_len=longest,
        max_seq_len=longest,
    )
