"""One stream of tokens: a prompt and what the model adds to it. A request with n > 1 is n sequences."""

import itertools
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import numpy as np

from vllm_nb.engine.grammar import Grammar
from vllm_nb.sampling import SamplingParams

Pooling = Literal["mean", "last"]

_arrivals = itertools.count()


class Status(Enum):
    WAITING = "waiting"  # queued, or preempted: holds no blocks
    RUNNING = "running"  # holds a row and its blocks
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Sequence:
    """State the scheduler keeps. `tokens[:num_computed]` have their keys and values in the cache."""

    request_id: str
    index: int  # among the request's n
    prompt_len: int
    params: SamplingParams
    seed: int
    max_tokens: int  # output tokens, already clipped to what context and cache can hold
    stop_ids: frozenset[int]
    arrived: float  # seconds, monotonic clock
    pooling: Pooling | None = None  # not an answer but an embedding is wanted: made so from the prompt's hidden states
    leader: "Sequence | None" = None  # the sibling whose prefill this one waits for, to share its blocks
    cache_salt: bytes = b""
    grammar: Grammar | None = None  # what the output has to follow
    arrival: int = field(default_factory=lambda: next(_arrivals))  # its number
    status: Status = Status.WAITING
    row: int = -1
    num_computed: int = 0
    in_flight: int = 0  # tokens of it in steps that are launched and not booked: not in num_computed yet
    num_cached: int = 0  # prompt tokens taken from the prefix cache at the first admission
    blocks: list[int] = field(default_factory=list)  # block table: logical block -> physical block
    block_hashes: list[bytes] = field(default_factory=list)  # of the full blocks, as far as computed
    scheduled: float | None = None
    first_token: float | None = None
    hidden_sum: np.ndarray | float = 0.0  # float64 [hidden]: over the computed tokens, for mean pooling
    _buffer: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    _length: int = 0

    @classmethod
    def new(cls, prompt: np.ndarray, **fields_: object) -> "Sequence":
        """A waiting sequence over `prompt`, int32 [prompt_len]."""
        seq = cls(prompt_len=len(prompt), **fields_)  # type: ignore[arg-type]
        seq._buffer = np.empty(len(prompt) + 64, np.int32)
        seq._buffer[: len(prompt)] = prompt
        seq._length = len(prompt)
        return seq

    @property
    def order(self) -> tuple[int, int]:
        """A total order: who has the lower priority number runs first, then who came first."""
        return self.params.priority, self.arrival

    def __len__(self) -> int:
        return self._length

    @property
    def tokens(self) -> np.ndarray:
        """Prompt and output, int32 [len]: a view."""
        return self._buffer[: self._length]

    @property
    def output_len(self) -> int:
        return self._length - self.prompt_len

    # What the next step builds on: one may be under way (engine/engine.py). Without one these are what is booked.

    @property
    def num_planned(self) -> int:
        """Computed tokens, once what is launched is done."""
        return self.num_computed + self.in_flight

    @property
    def expected_len(self) -> int:
        """Tokens there will be then: one more, where it reaches the end."""
        return self._length + (self.in_flight > 0 and self.num_computed + self.in_flight == self._length)

    @property
    def is_decoding(self) -> bool:
        """Everything but the newest token is in the cache, and that token is the model's own."""
        length = self.expected_len
        return self.num_computed + self.in_flight == length - 1 and length > self.prompt_len

    @property
    def is_ending(self) -> bool:
        """What is launched is the last that it needs, whatever token comes of it."""
        awaited = self.expected_len - self._length
        return awaited > 0 and (self.pooling is not None or self.output_len + awaited >= self.max_tokens)

    def append(self, token: int) -> None:
        if self._length == len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty_like(self._buffer)])
        self._buffer[self._length] = token
        self._length += 1
