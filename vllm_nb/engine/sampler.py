"""From logits to tokens: each row by its own request's parameters.

Order: logit_bias, min_tokens mask, penalties, temperature, top_k, top_p, min_p, draw. Rows that ask for nothing special
cost nothing. Randomness is stateless: a uniform number is a hash of (seed, position), so a request's draws depend
neither on its neighbours nor on being preempted in between.
"""

from typing import Any

import numpy as np
import torch

from vllm_nb.engine.batch import wants_prompt_logits
from vllm_nb.engine.scheduler import Plan
from vllm_nb.engine.sequence import Sequence

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1), float32, by SplitMix64 (Steele et al. 2014) over seed and position. Both uint64 [R]."""
    with np.errstate(over="ignore"):
        z = _mix(_mix(seeds + _GOLDEN) ^ (positions * _GOLDEN))
    return (z >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class SamplingRows:
    """Sampling parameters by row, as arrays that a step gathers from."""

    FIELDS = ("temperature", "top_k", "top_p", "min_p")

    def __init__(self, max_num_seqs: int):
        self.temperature = np.zeros(max_num_seqs, np.float32)
        self.top_k = np.zeros(max_num_seqs, np.int32)
        self.top_p = np.ones(max_num_seqs, np.float32)
        self.min_p = np.zeros(max_num_seqs, np.float32)
        self.seed = np.zeros(max_num_seqs, np.uint64)
        self.adjusts = np.zeros(max_num_seqs, bool)  # bias, penalties or a minimum length
        self.logprobs = np.full(max_num_seqs, -1, np.int32)  # alternatives asked for; -1: none, not even the token's

    def admit(self, seq: Sequence) -> None:
        params, row = seq.params, seq.row
        for name in self.FIELDS:
            getattr(self, name)[row] = getattr(params, name)
        self.seed[row] = seq.seed % 2**64
        self.logprobs[row] = -1 if params.logprobs is None else params.logprobs
        penalised = params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty
        self.adjusts[row] = bool(penalised or params.logit_bias or params.min_tokens)


class Sampler:
    """kernels: a backend with `sample` and `token_logprobs`."""

    def __init__(self, kernels: Any, max_num_seqs: int):
        self._kernels = kernels
        self._rows = SamplingRows(max_num_seqs)

    @torch.inference_mode()
    def __call__(self, logits: torch.Tensor, plan: Plan, logits_row: np.ndarray) -> "Samples":
        """logits [R, vocab]; logits_row [S]: where each sequence's next-token logits are. Alters `logits`."""
        for seq in plan.admitted:
            self._rows.admit(seq)
        samples = Samples()
        if plan.prompt_logits:
            self._prompt_logprobs(logits, plan, logits_row, samples)
        if logits.shape[0] != len(plan.seqs):
            logits = logits[torch.from_numpy(logits_row).to(logits.device)]
        row = np.array([seq.row for seq in plan.seqs], np.int32)
        asked = self._asked(plan, row)
        raw = logits[torch.from_numpy(asked)] if len(asked) else None  # before anything alters them
        for i in np.flatnonzero(self._rows.adjusts[row]):
            _adjust(logits[i], plan.seqs[i])
        tokens = self._draw(logits, plan, row)
        samples.tokens = tokens.tolist()
        if raw is not None:
            self._logprobs(raw, asked, row, tokens, samples)
        return samples

    def _draw(self, logits: torch.Tensor, plan: Plan, row: np.ndarray) -> np.ndarray:
        rows = self._rows
        positions = np.array([len(seq) for seq in plan.seqs], np.uint64)
        uniform = uniforms(rows.seed[row], positions)
        per_row = (rows.temperature[row], rows.top_k[row], rows.top_p[row], rows.min_p[row], uniform)
        tensors = [torch.from_numpy(values).to(logits.device) for values in per_row]
        return self._kernels.sample(logits, *tensors).cpu().numpy()

    def _asked(self, plan: Plan, row: np.ndarray) -> np.ndarray:
        """Which sequences want log-probabilities of the token they get in this step."""
        asked = np.flatnonzero(self._rows.logprobs[row] >= 0)
        ends = [i for i in asked if plan.seqs[i].num_computed + plan.num_tokens[i] == len(plan.seqs[i])]
        return np.array(ends, np.int64)

    def _logprobs(
        self, raw: torch.Tensor, asked: np.ndarray, row: np.ndarray, tokens: np.ndarray, samples: "Samples"
    ) -> None:
        wanted = self._rows.logprobs[row[asked]]
        chosen = torch.from_numpy(np.maximum(tokens[asked], 0)).to(raw.device)
        result = self._kernels.token_logprobs(raw, chosen, int(wanted.max()))
        logprob, rank, top_ids, top_logprobs = (x.cpu().numpy() for x in result)
        for j, i in enumerate(asked):
            k = wanted[j]
            samples.logprobs[int(i)] = (float(logprob[j]), int(rank[j]), top_ids[j, :k], top_logprobs[j, :k])

    def _prompt_logprobs(self, logits: torch.Tensor, plan: Plan, logits_row: np.ndarray, samples: "Samples") -> None:
        """Position p's logits predict token p + 1, as far as that lies in the prompt."""
        for i, seq in enumerate(plan.seqs):
            if not wants_prompt_logits(seq):
                continue
            start, count = seq.num_computed, plan.num_tokens[i]
            known = min(count, seq.prompt_len - 1 - start)
            if known <= 0:
                continue
            first = int(logits_row[i]) - count + 1
            targets = torch.from_numpy(seq.tokens[start + 1 : start + 1 + known].copy()).to(logits.device)
            k = seq.params.prompt_logprobs or 0
            result = self._kernels.token_logprobs(logits[first : first + known], targets, k)
            samples.prompt_logprobs[i] = start + 1, tuple(x.cpu().numpy() for x in result)


class Samples:
    """What the sampler found, by position in the plan."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: dict[int, tuple] = {}  # (logprob, rank, top ids, top logprobs)
        self.prompt_logprobs: dict[int, tuple[int, tuple]] = {}  # (first position, the same as arrays over positions)


def _adjust(logits: torch.Tensor, seq: Sequence) -> None:
    """logit_bias, minimum length and penalties of one row, in place. logits [vocab]."""
    params = seq.params
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=logits.device)
        logits[ids] += torch.tensor(list(params.logit_bias.values()), dtype=logits.dtype, device=logits.device)
    if seq.output_len < params.min_tokens and seq.stop_ids:
        logits[torch.tensor(list(seq.stop_ids), device=logits.device)] = -torch.inf
    if params.repetition_penalty != 1:
        seen = torch.from_numpy(np.unique(seq.tokens)).to(logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if (params.frequency_penalty or params.presence_penalty) and seq.output_len:
        ids, counts = np.unique(seq.tokens[seq.prompt_len :], return_counts=True)
        amount = counts * params.frequency_penalty + params.presence_penalty
        logits[torch.from_numpy(ids).to(logits.device)] -= torch.from_numpy(amount).to(logits)
