"""From hidden states to embeddings: what becomes of the sequences that want no answer."""

import numpy as np
import torch

from vllm_nb.engine.scheduler import Plan
from vllm_nb.engine.sequence import Sequence


def pool(hidden: torch.Tensor, plan: Plan) -> dict[Sequence, np.ndarray]:
    """hidden [T, K], after the final norm. The embeddings, float64 [K], of the sequences that reach the end of their
    prompt in this step: the mean over all its tokens, summed from chunk to chunk, or the last one's hidden state."""
    ends = np.cumsum(plan.num_tokens)
    found = {}
    for i in plan.pooled:
        seq, count, end = plan.seqs[i], plan.num_tokens[i], int(ends[i])
        if seq.pooling == "mean":
            if plan.starts[i] == 0:  # also when it begins anew after a preemption
                seq.hidden_sum = 0.0
            # One row after the other, in float64: the same sum wherever the prompt is cut.
            seq.hidden_sum = seq.hidden_sum + _rows(hidden, end - count, end).sum(axis=0)
        if plan.reaches_end(i):
            found[seq] = (
                np.asarray(seq.hidden_sum) / len(seq) if seq.pooling == "mean" else _rows(hidden, end - 1, end)[0]
            )
    return found


def _rows(hidden: torch.Tensor, start: int, end: int) -> np.ndarray:
    return hidden[start:end].cpu().to(torch.float64).numpy()
