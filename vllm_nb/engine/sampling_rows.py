"""Sampling parameters of the sequences of a step as tensors: gathered once, and kept as long as the same ones run."""

from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_nb.engine.scheduler import Plan
from vllm_nb.engine.sequence import Sequence
from vllm_nb.engine.transfer import upload
from vllm_nb.sampling import SamplingParams


class SamplingRows:
    """S sequences; index i of a tensor belongs to seqs[i]. All of them are on the device of the logits."""

    def __init__(self, seqs: list[Sequence], device: torch.device):
        params = [seq.params for seq in seqs]
        self.seqs = seqs
        self.greedy = all(p.temperature == 0 for p in params)
        self.with_grammar = [i for i, seq in enumerate(seqs) if seq.grammar is not None]
        self.with_logprobs = [i for i, p in enumerate(params) if p.logprobs is not None]
        self.host_row = np.array([seq.row for seq in seqs], np.int64)
        self.row, self.seeds, top_k = upload(
            [
                self.host_row,
                np.array([seq.seed % 2**64 for seq in seqs], np.uint64).view(np.int64),
                np.array([p.top_k for p in params], np.int64),
            ],
            device,
        )
        self.top_k = top_k.int()
        self.temperature, self.top_p, self.min_p, self.uniform = upload(
            [
                _floats(p.temperature for p in params),
                _floats(p.top_p for p in params),
                _floats(p.min_p for p in params),
                np.zeros(len(seqs), np.float32),  # what greedy rows get
            ],
            device,
        )
        self._bias = _Bias.of(seqs, device)
        self._minimum = _Minimum.of(seqs, device)
        self._penalties = _Penalties.of(seqs, device)

    def adjust(self, logits: Tensor, lengths: Tensor, tokens: Tensor, kernels: Any) -> None:
        """logit_bias, minimum lengths and penalties, in place. logits [S, vocab]; lengths int64 [S]: tokens there are
        of each; tokens int32 [rows, max_len]: which."""
        if self._bias is not None:
            self._bias.add(logits)
        if self._minimum is not None:
            self._minimum.forbid_ends(logits, lengths)
        if self._penalties is not None:
            self._penalties.apply(logits, lengths, self.row, tokens, kernels)


def adjusts(params: SamplingParams) -> bool:
    """Whether anything but a grammar changes the logits themselves."""
    return bool(_penalises(params) or params.logit_bias or params.min_tokens)


def _penalises(params: SamplingParams) -> bool:
    return bool(params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty)


def _floats(values: Any) -> np.ndarray:
    return np.fromiter(values, np.float32)


class _Bias:
    """logit_bias: values [B] to be added at (rows, ids), all different."""

    def __init__(self, entries: Many[tuple[int, int, float]], device: torch.device):
        rows, ids, values = zip(*entries, strict=True)
        self._rows, self._ids = upload([np.array(rows, np.int64), np.array(ids, np.int64)], device)
        (self._values,) = upload([np.array(values, np.float32)], device)

    @classmethod
    def of(cls, seqs: list[Sequence], device: torch.device) -> "_Bias | None":
        entries = [(i, *pair) for i, seq in enumerate(seqs) for pair in (seq.params.logit_bias or {}).items()]
        return cls(entries, device) if entries else None

    def add(self, logits: Tensor) -> None:
        at = self._rows, self._ids
        logits[at] = logits[at] + self._values


class _Minimum:
    """min_tokens: the stop ids (rows, ids) are ruled out while a sequence is shorter than `until`, all int64 [M]."""

    def __init__(self, entries: Many[tuple[int, int, int]], device: torch.device):
        arrays = [np.array(column, np.int64) for column in zip(*entries, strict=True)]
        self._rows, self._ids, self._until = upload(arrays, device)

    @classmethod
    def of(cls, seqs: list[Sequence], device: torch.device) -> "_Minimum | None":
        entries = [
            (i, end, seq.prompt_len + seq.params.min_tokens)
            for i, seq in enumerate(seqs)
            if seq.params.min_tokens and seq.grammar is None
            for end in seq.stop_ids
        ]
        return cls(entries, device) if entries else None

    def forbid_ends(self, logits: Tensor, lengths: Tensor) -> None:
        at = self._rows, self._ids
        logits[at] = logits[at].masked_fill(lengths[self._rows] < self._until, -torch.inf)


class _Penalties:
    """Those of the rows that have any."""

    def __init__(self, seqs: list[Sequence], penalised: list[int], device: torch.device):
        params = [seqs[i].params for i in penalised]
        prompt_lens = np.array([seqs[i].prompt_len for i in penalised], np.int64)
        self._rows, self._prompt_lens = upload([np.array(penalised, np.int64), prompt_lens], device)
        self._amounts = upload(
            [
                _floats(p.repetition_penalty or 1.0 for p in params),
                _floats(p.frequency_penalty or 0.0 for p in params),
                _floats(p.presence_penalty or 0.0 for p in params),
            ],
            device,
        )

    @classmethod
    def of(cls, seqs: list[Sequence], device: torch.device) -> "_Penalties | None":
        penalised = [i for i, seq in enumerate(seqs) if _penalises(seq.params)]
        return cls(seqs, penalised, device) if penalised else None

    def apply(self, logits: Tensor, lengths: Tensor, row: Tensor, tokens: Tensor, kernels: Any) -> None:
        rows = self._rows
        kernels.penalize(logits, rows, tokens, row[rows], self._prompt_lens, lengths[rows], *self._amounts)


def reaching_their_end(plan: Plan, among: list[int]) -> list[int]:
    """Those that get a token in this step; the others have more of their prompt to come."""
    return [i for i in among if plan.reaches_end(i)]
