"""From logits to tokens: each row by its own request's parameters.

Order: logit_bias, min_tokens mask, penalties, grammar mask, temperature, top_k, top_p, min_p, draw. Rows that ask for
nothing special cost nothing. Randomness is stateless: a uniform number is a hash of (seed, position), so a request's
draws depend neither on its neighbours nor on being preempted in between.

Nothing here waits for the device: what was drawn is on its way to the host, and already where the next step looks for
its input.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_nb.engine.batch import Rows, wants_prompt_logits
from vllm_nb.engine.grammar import forbid
from vllm_nb.engine.sampling_rows import SamplingRows, adjusts, reaching_their_end
from vllm_nb.engine.scheduler import Logprobs, Plan, PromptLogprobs
from vllm_nb.engine.transfer import Download, upload
from vllm_nb.sampling import SamplingParams


class Sampler:
    """kernels: a backend. sequences: the runner's rows, whose tokens are what penalties look at, and to which what is
    drawn is added."""

    def __init__(self, kernels: Any, sequences: Rows):
        self._kernels = kernels
        self._sequences = sequences
        self._rows = SamplingRows([], torch.device("cpu"))

    @torch.inference_mode()
    def __call__(self, logits: Tensor, plan: Plan, logits_row: np.ndarray) -> "Drawn":
        """logits [R, vocab]; logits_row [S]: where each sequence's next-token logits are. Alters `logits`."""
        device = logits.device
        if self._rows.seqs != plan.seqs or plan.admitted:
            self._rows = SamplingRows(plan.seqs, device)
        rows = self._rows
        host_lengths = np.array(plan.lengths, np.int64)
        (lengths,) = upload([host_lengths], device)
        prompts = self._prompt_logprobs(logits, plan, logits_row) if plan.prompt_logits else {}
        if logits.shape[0] != len(plan.seqs):
            logits = logits[upload([logits_row], device)[0]]
        asked = reaching_their_end(plan, rows.with_logprobs)
        which = upload([np.array(asked, np.int64)], device)[0] if asked else None
        raw = None if which is None else logits[which]  # before anything alters them
        rows.adjust(logits, lengths, self._sequences.tokens, self._kernels)
        if with_grammar := reaching_their_end(plan, rows.with_grammar):
            _mask(logits, with_grammar, plan)
        uniform = rows.uniform if rows.greedy else self._kernels.uniforms(rows.seeds, lengths)
        tokens = self._kernels.sample(logits, rows.temperature, rows.top_k, rows.top_p, rows.min_p, uniform)
        if device.type == "cpu":
            self._sequences.append(rows.host_row, host_lengths, tokens)
        else:
            self._sequences.append(rows.row, lengths, tokens)
        logprobs = None
        if raw is not None:
            params = [plan.seqs[i].params for i in asked]
            logprobs = _Logprobs(raw, tokens[which].clamp(min=0), asked, params, self._kernels)
        return Drawn(tokens, logprobs, prompts)

    def _prompt_logprobs(self, logits: Tensor, plan: Plan, logits_row: np.ndarray) -> "dict[int, _Prompt]":
        """Position p's logits predict token p + 1, as far as that lies in the prompt."""
        found = {}
        for i, seq in enumerate(plan.seqs):
            start, count = plan.starts[i], plan.num_tokens[i]
            known = min(count, seq.prompt_len - 1 - start)
            if known <= 0 or not wants_prompt_logits(seq, start):
                continue
            first = int(logits_row[i]) - count + 1
            rows, targets = upload(
                [np.arange(first, first + known), seq.tokens[start + 1 : start + 1 + known].astype(np.int64)],
                logits.device,
            )
            k = seq.params.prompt_logprobs or 0
            found[i] = start + 1, Download(self._kernels.token_logprobs(logits[rows], targets.int(), k))
        return found


_Prompt = tuple[int, Download]  # the first position; what token_logprobs gives


class Samples:
    """What the sampler found, by position in the plan."""

    def __init__(self, tokens: list[int]):
        self.tokens = tokens
        self.logprobs: dict[int, Logprobs] = {}
        self.prompt_logprobs: dict[int, tuple[int, PromptLogprobs]] = {}  # with the first of the positions


class Drawn:
    """What the sampler has launched."""

    def __init__(self, tokens: Tensor, logprobs: "_Logprobs | None", prompts: dict[int, _Prompt]):
        self._logprobs = logprobs
        self._prompts = prompts
        self._tokens = Download([tokens])  # the last to be sent: the others are there when it is

    def wait(self) -> Samples:
        """Once it is on the host."""
        samples = Samples(self._tokens.wait()[0].tolist())
        if self._logprobs is not None:
            samples.logprobs = self._logprobs.by_position()
        for i, (first, found) in self._prompts.items():
            samples.prompt_logprobs[i] = first, tuple(found.wait())
        return samples


class _Logprobs:
    """Of the tokens [A] that were drawn for the positions `asked`, under raw logits [A, vocab]."""

    def __init__(self, raw: Tensor, tokens: Tensor, asked: list[int], params: list[SamplingParams], kernels: Any):
        self._asked = asked
        self._wanted = [p.logprobs or 0 for p in params]
        found = kernels.token_logprobs(raw, tokens, max(self._wanted))
        shapes = shapes_of(raw, params) if max(self._wanted) else ()
        self._found = Download([*found, *shapes])

    def by_position(self) -> dict[int, Logprobs]:
        logprob, rank, top_ids, top_logprobs, *shapes = self._found.wait()
        found = {}
        for j, (i, k) in enumerate(zip(self._asked, self._wanted, strict=True)):
            shape = shape_at(shapes, j) if k else ()
            found[i] = Logprobs(float(logprob[j]), int(rank[j]), top_ids[j, :k], top_logprobs[j, :k], *shape)
        return found


def shapes_of(raw: Tensor, params: list[SamplingParams]) -> tuple[Tensor, Tensor]:
    """Entropy and log_mass of rows of logits [A, vocab], both [A]; see TokenLogprob. NaN: there is no such mass."""
    logprobs = raw.log_softmax(-1)
    entropies = torch.special.entr(logprobs.exp()).sum(-1)
    return entropies, torch.stack([_log_mass(row, p) for row, p in zip(logprobs, params, strict=True)])


def shape_at(shapes: Sequence[np.ndarray], row: int) -> tuple[float, float | None]:
    """One row of what `shapes_of` gives, on the host."""
    entropy, mass = (float(column[row]) for column in shapes)
    return entropy, None if math.isnan(mass) else mass


def _log_mass(logprobs: Tensor, params: SamplingParams) -> Tensor:
    """logprobs [vocab] -> []"""
    if params.temperature == 0 or adjusts(params):
        return logprobs.new_full((), torch.nan)
    scaled = logprobs / (params.temperature or 1.0)
    if params.top_k:
        least = scaled.topk(min(params.top_k, len(scaled))).values[-1]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    return scaled.logsumexp(0)


def _mask(logits: Tensor, rows: list[int], plan: Plan) -> None:
    """Rule out what the grammars of these rows do not allow, in place. logits [S, vocab]."""
    bits = np.zeros((len(rows), -(-logits.shape[1] // 32)), np.uint32)
    for row, i in zip(bits, rows, strict=True):
        seq = plan.seqs[i]
        assert seq.grammar is not None
        may_stop = seq.output_len >= seq.params.min_tokens
        seq.grammar.fill(row, np.array(sorted(seq.stop_ids), np.int64), may_stop)
    forbid(logits, rows, bits)
