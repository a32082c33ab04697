"""From logits to tokens: each row by its own request's parameters.

Order: logit_bias, min_tokens mask, penalties, grammar mask, temperature, top_k, top_p, min_p, draw. Rows that ask for
nothing special cost nothing. Randomness is stateless: a uniform number is a hash of (seed, position), so a request's
draws depend neither on its neighbours nor on being preempted in between.
"""

from typing import Any

import numpy as np
import torch

from vllm_nb.engine.batch import wants_prompt_logits
from vllm_nb.engine.grammar import forbid
from vllm_nb.engine.scheduler import Logprobs, Plan, PromptLogprobs
from vllm_nb.engine.sequence import Sequence
from vllm_nb.sampling import SamplingParams

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
    """Sampling parameters of the sequences of a step, gathered once and kept as long as the same ones run."""

    def __init__(self, seqs: list[Sequence], device: torch.device):
        params = [seq.params for seq in seqs]
        self.seqs = seqs
        self.seeds = np.array([seq.seed % 2**64 for seq in seqs], np.uint64)
        self.greedy = all(p.temperature == 0 for p in params)
        self.adjusted = [i for i, p in enumerate(params) if _adjusts(p)]
        self.with_grammar = [i for i, seq in enumerate(seqs) if seq.grammar is not None]
        self.with_logprobs = [i for i, p in enumerate(params) if p.logprobs is not None]
        self.uniform = torch.zeros(len(seqs), device=device)  # what greedy rows get
        self.temperature = torch.tensor([p.temperature for p in params], dtype=torch.float32, device=device)
        self.top_k = torch.tensor([p.top_k for p in params], dtype=torch.int32, device=device)
        self.top_p = torch.tensor([p.top_p for p in params], dtype=torch.float32, device=device)
        self.min_p = torch.tensor([p.min_p for p in params], dtype=torch.float32, device=device)


class Sampler:
    """kernels: a backend with `sample` and `token_logprobs`."""

    def __init__(self, kernels: Any):
        self._kernels = kernels
        self._rows = SamplingRows([], torch.device("cpu"))

    @torch.inference_mode()
    def __call__(self, logits: torch.Tensor, plan: Plan, logits_row: np.ndarray) -> "Samples":
        """logits [R, vocab]; logits_row [S]: where each sequence's next-token logits are. Alters `logits`."""
        if self._rows.seqs != plan.seqs:
            self._rows = SamplingRows(plan.seqs, logits.device)
        samples = Samples()
        if plan.prompt_logits:
            self._prompt_logprobs(logits, plan, logits_row, samples)
        if logits.shape[0] != len(plan.seqs):
            logits = logits[torch.from_numpy(logits_row).to(logits.device)]
        asked = _reaching_their_end(plan, self._rows.with_logprobs)
        raw = logits[asked] if asked else None  # before anything alters them
        for i in self._rows.adjusted:
            _adjust(logits[i], plan.seqs[i])
        if rows := _reaching_their_end(plan, self._rows.with_grammar):
            _mask(logits, rows, plan)
        samples.tokens = self._draw(logits, plan).tolist()
        if raw is not None:
            self._logprobs(raw, asked, plan, samples)
        return samples

    def _draw(self, logits: torch.Tensor, plan: Plan) -> torch.Tensor:
        rows = self._rows
        uniform = rows.uniform
        if not rows.greedy:
            positions = np.array([len(seq) for seq in plan.seqs], np.uint64)
            uniform = torch.from_numpy(uniforms(rows.seeds, positions)).to(logits.device)
        return self._kernels.sample(logits, rows.temperature, rows.top_k, rows.top_p, rows.min_p, uniform)

    def _logprobs(self, raw: torch.Tensor, asked: list[int], plan: Plan, samples: "Samples") -> None:
        wanted = [plan.seqs[i].params.logprobs or 0 for i in asked]
        chosen = torch.tensor([max(samples.tokens[i], 0) for i in asked], dtype=torch.int32, device=raw.device)
        result = self._kernels.token_logprobs(raw, chosen, max(wanted))
        logprob, rank, top_ids, top_logprobs = (x.cpu().numpy() for x in result)
        shapes = _shapes(raw, [plan.seqs[i].params for i in asked])
        for j, (i, k) in enumerate(zip(asked, wanted, strict=True)):
            shape = shapes[j] if k else ()
            samples.logprobs[i] = Logprobs(float(logprob[j]), int(rank[j]), top_ids[j, :k], top_logprobs[j, :k], *shape)

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


def _shapes(raw: torch.Tensor, params: list[SamplingParams]) -> list[tuple[float, float | None]]:
    """Entropy and log_mass of rows of logits [A, vocab], for those that ask for alternatives; see TokenLogprob."""
    if not any(p.logprobs for p in params):
        return [(0.0, None)] * len(params)
    logprobs = raw.log_softmax(-1)
    entropy = torch.special.entr(logprobs.exp()).sum(-1).tolist()
    return [(nats, _log_mass(row, p)) for nats, row, p in zip(entropy, logprobs, params, strict=True)]


def _log_mass(logprobs: torch.Tensor, params: SamplingParams) -> float | None:
    """logprobs [vocab]"""
    if params.temperature == 0 or _adjusts(params):
        return None
    scaled = logprobs / (params.temperature or 1.0)
    if params.top_k:
        least = scaled.topk(min(params.top_k, len(scaled))).values[-1]
        scaled = scaled[scaled >= least]
    return float(scaled.logsumexp(0))


class Samples:
    """What the sampler found, by position in the plan."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: dict[int, Logprobs] = {}
        self.prompt_logprobs: dict[int, tuple[int, PromptLogprobs]] = {}  # with the first of the positions


def _reaching_their_end(plan: Plan, among: list[int]) -> list[int]:
    """Those that get a token in this step; the others have more of their prompt to come."""
    return [i for i in among if plan.seqs[i].num_computed + plan.num_tokens[i] == len(plan.seqs[i])]


def _mask(logits: torch.Tensor, rows: list[int], plan: Plan) -> None:
    """Rule out what the grammars of these rows do not allow, in place. logits [S, vocab]."""
    bits = np.zeros((len(rows), -(-logits.shape[1] // 32)), np.uint32)
    for row, i in zip(bits, rows, strict=True):
        seq = plan.seqs[i]
        assert seq.grammar is not None
        may_stop = seq.output_len >= seq.params.min_tokens
        seq.grammar.fill(row, np.array(sorted(seq.stop_ids), np.int64), may_stop)
    forbid(logits, rows, bits)


def _adjusts(params: SamplingParams) -> bool:
    penalised = params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty
    return bool(penalised or params.logit_bias or params.min_tokens)


def _adjust(logits: torch.Tensor, seq: Sequence) -> None:
    """logit_bias, minimum length and penalties of one row, in place. logits [vocab]."""
    params = seq.params
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=logits.device)
        logits[ids] += torch.tensor(list(params.logit_bias.values()), dtype=logits.dtype, device=logits.device)
    if seq.output_len < params.min_tokens and seq.stop_ids and seq.grammar is None:
        logits[torch.tensor(list(seq.stop_ids), device=logits.device)] = -torch.inf
    penalty = params.repetition_penalty or 1.0
    if penalty != 1:
        seen = torch.from_numpy(np.unique(seq.tokens)).to(logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if (params.frequency_penalty or params.presence_penalty) and seq.output_len:
        used, counts = np.unique(seq.tokens[seq.prompt_len :], return_counts=True)
        amount = counts * params.frequency_penalty + params.presence_penalty
        logits[torch.from_numpy(used).to(logits.device)] -= torch.from_numpy(amount).to(logits)
