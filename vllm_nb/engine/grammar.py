"""What a sequence may say next where its output must follow a grammar; llguidance's matcher does the work.

The state advances where tokens are appended and nowhere else, so it needs no care in preemption: the tokens are
computed again, not sampled again.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from vllm_nb.engine.transfer import upload

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Grammar:
    """Of one sequence. eos_ids: the tokens that the matcher takes for the output's end; what really ends it are the
    sequence's stop ids, which stand in for them."""

    def __init__(self, matcher: "LLMatcher", eos_ids: Iterable[int]):
        self._matcher = matcher
        self._eos_ids = np.array(sorted(eos_ids), np.int64)
        self._stuck = ""

    def fork(self) -> "Grammar":
        """The same state, to go its own way."""
        return Grammar(self._matcher.deep_copy(), self._eos_ids)

    @property
    def is_complete(self) -> bool:
        """Nothing can follow any more."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def error(self) -> str:
        """Why it cannot go on, if it cannot: the output left the grammar, or the grammar proved too costly."""
        return self._matcher.get_error() or self._stuck

    def advance(self, token: int) -> bool:
        """Take the next token. False when it cannot; then `error` says why."""
        return not self._stuck and self._matcher.consume_token(token)

    def fill(self, bits: np.ndarray, stop_ids: np.ndarray, may_stop: bool) -> None:
        """The tokens allowed next, one bit each, uint32 [words]. The output may end where the grammar can; before
        min_tokens (not may_stop) only if there is nothing else to say. With an error some token is allowed all the
        same, so that the step goes on for others; this sequence ends with it."""
        try:
            self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        except Exception as error:  # the library raises nothing narrower
            self._stuck = str(error)
        _clear(bits, self._eos_ids)
        if self._matcher.is_accepting() and (may_stop or not bits.any()):
            _set(bits, stop_ids)
        if not bits.any():
            self._stuck = self._stuck or "no token of this model's vocabulary can follow"
            bits[0] = 1


def _set(bits: np.ndarray, ids: np.ndarray) -> None:
    np.bitwise_or.at(bits, ids >> 5, np.uint32(1) << (ids & 31).astype(np.uint32))


def _clear(bits: np.ndarray, ids: np.ndarray) -> None:
    np.bitwise_and.at(bits, ids >> 5, ~(np.uint32(1) << (ids & 31).astype(np.uint32)))


def unpacked(bits: np.ndarray, vocab_size: int) -> np.ndarray:
    """Bits, uint32 [rows, words], as bool [rows, vocab_size]."""
    return np.unpackbits(bits.view(np.uint8), axis=1, count=vocab_size, bitorder="little").view(np.bool_)


_INFINITY_BITS = np.int32(-(2**23))  # minus infinity as a float32


def forbid(logits: torch.Tensor, rows: list[int], bits: np.ndarray) -> None:
    """Minus infinity for what `bits` do not allow, in place. logits float32 [S, vocab]; bits uint32 [rows, words]."""
    forbidden = ~unpacked(bits, logits.shape[1])
    if logits.device.type != "cpu":
        (which,) = upload([np.array(rows, np.int64)], logits.device)
        (mask,) = upload([forbidden], logits.device)
        logits[which] = logits[which].masked_fill(mask, -torch.inf)
        return
    for i, row in zip(rows, forbidden, strict=True):  # integers, for a choice by element takes five times as long
        values, mask = logits[i].numpy().view(np.int32), row.astype(np.int32)
        np.negative(mask, out=mask)
        values &= ~mask
        values |= mask & _INFINITY_BITS
