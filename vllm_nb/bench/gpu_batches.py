"""Batches as the runner would make them, for kernels that are timed alone: shuffled blocks, nothing cached."""

import torch
from torch import Tensor

from vllm_nb.engine.batch import Batch

_BLOCK = 16


def decode_batch(seqs: int, context: int, device: torch.device) -> tuple[Batch, int]:
    """`seqs` sequences of `context` tokens that decode one each; with the number of blocks they take."""
    ones = torch.ones(seqs, dtype=torch.int32, device=device)
    return _batch(ones, ones * context, device)


def prefill_batch(tokens: int, device: torch.device) -> tuple[Batch, int]:
    """One prompt in one step."""
    length = torch.tensor([tokens], dtype=torch.int32, device=device)
    return _batch(length, length, device)


def _batch(queries: Tensor, lengths: Tensor, device: torch.device) -> tuple[Batch, int]:
    seqs, longest = len(lengths), int(lengths.max())
    per_seq = -(-longest // _BLOCK)
    generator = torch.Generator().manual_seed(0)
    tables = torch.randperm(seqs * per_seq, generator=generator).int().view(seqs, per_seq).to(device)
    starts = torch.zeros(seqs + 1, dtype=torch.int32, device=device)
    starts[1:] = queries.cumsum(0)
    total = int(starts[-1])
    seq = torch.repeat_interleave(torch.arange(seqs, device=device), queries)
    positions = torch.arange(total, device=device) - starts[seq] + (lengths - queries)[seq]
    slots = tables[seq, positions // _BLOCK] * _BLOCK + positions % _BLOCK
    batch = Batch(
        token_ids=torch.zeros(total, dtype=torch.int32, device=device),
        token_rows=seq.int(),
        positions=positions.int(),
        slot_mapping=slots.int(),
        query_start_loc=starts,
        seq_lens=lengths,
        block_tables=tables,
        logits_indices=starts[1:] - 1,
        num_tokens=total,
        num_seqs=seqs,
        num_logits=seqs,
        max_query_len=int(queries.max()),
        max_seq_len=longest,
    )
    return batch, seqs * per_seq
