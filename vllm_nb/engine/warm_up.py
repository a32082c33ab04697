"""Steps that nobody asked for: they compile a GPU's kernels before the first request, and show what a step takes.

Kernels are compiled by the kind of step (prefill or decode) and by power of two of its tokens up to 128, never by the
exact numbers, so these few batches cover all that requests can bring; a test counts.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from vllm_nb.engine.batch import Batch, Rows
from vllm_nb.engine.capacity import Capacity
from vllm_nb.engine.placement import Placement
from vllm_nb.engine.sampler import Sampler
from vllm_nb.engine.scheduler import Plan
from vllm_nb.engine.sequence import Sequence
from vllm_nb.sampling import MAX_LOGPROBS, NEUTRAL_DEFAULTS, SamplingParams

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


Peak = Callable[[Callable[[], object]], int]  # bytes that some work takes at most, besides what there was


@torch.inference_mode()
def profile_step(model: Any, capacity: Capacity, placement: Placement, peak: Peak | None = None) -> int:
    """Bytes that an engine takes on its device, by default a CUDA one, besides weights and KV cache: the rows' tokens,
    the largest step with whatever sampling can need, and the memory that graphs of decode steps keep for themselves."""
    kernels, device, config = placement.kernels, placement.device, model.config
    peak = peak or partial(_cuda_peak, device)
    shape = (1, capacity.block_size, config.num_kv_heads, config.head_dim, placement.kv_dtype, device)
    kv = [kernels.allocate_kv(*shape) for _ in range(config.num_layers)]
    rows = Rows(capacity.max_num_seqs, capacity.max_model_len, capacity.block_size, device)
    rows.tokens.zero_()

    def largest() -> None:
        logits, _hidden = model.forward(largest_batch(capacity).to(device), kv)
        Sampler(kernels, rows)(logits, _sample_all(capacity), np.arange(capacity.max_num_seqs)).wait()

    size = rows.tokens.nbytes + peak(largest)
    if getattr(kernels, "CUDA_GRAPHS", False):
        outputs: list[torch.Tensor] = []
        size += peak(lambda: outputs.extend(model.forward(_decode_batch(capacity).to(device), kv)))
        size += sum(output.nbytes for output in outputs)  # graphs.py: copied, to be kept
    return size


def _cuda_peak(device: torch.device, work: Callable[[], object]) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _sample_all(capacity: Capacity) -> Plan:
    """A step that samples every row there is, with all that takes memory."""
    params = SamplingParams(
        **{**NEUTRAL_DEFAULTS, "temperature": 1.0, "frequency_penalty": 1.0, "logprobs": MAX_LOGPROBS}
    )
    plan, prompt = Plan(), np.zeros(1, np.int32)
    for row in range(capacity.max_num_seqs):
        seq = Sequence.new(
            prompt, request_id="", index=row, params=params, seed=0, max_tokens=1, stop_ids=frozenset(), arrived=0.0,
            arrival=row, row=row,
        )  # fmt: skip
        plan.add(seq, 1)
    return plan


def _decode_batch(capacity: Capacity) -> Batch:
    """One token of each row, as the largest graph takes them: contexts are cut into parts by how long they can get."""
    rows = capacity.max_num_seqs
    batch = _batch(rows, rows, replace(capacity, max_model_len=1))
    batch.max_seq_len = capacity.max_model_len
    return batch


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
