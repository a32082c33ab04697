"""Who runs in the next step, how many tokens each, on which blocks.

One token budget, no phases (as in vLLM V1): running requests come first, one token each or their next prefill chunk;
waiting requests fill the rest with prefill chunks. While anything decodes, the prefill tokens of a step are capped, so
that no stream stalls behind a long prompt. Admission reserves blocks for the whole prompt, so a prefill never fails
half-way. When decoding runs out of blocks, the last in order is preempted and recomputed later; the first is never
preempted, so there is always progress. The order is that of arrival, unless requests have priorities.
"""

import time
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from vllm_nb.engine.block_manager import BlockManager
from vllm_nb.engine.events import EventLog
from vllm_nb.engine.sequence import Sequence, Status
from vllm_nb.events import RequestFinished, RequestPreempted, RequestQueued, RequestScheduled, TokensSampled

_by_order = attrgetter("order")
BAD_LOGITS = -1  # what the sampler gives for a row with NaN logits
PromptLogprobs = tuple[np.ndarray, ...]  # the first four of Logprobs as arrays over positions of the prompt


class Logprobs(NamedTuple):
    """Of a sampled token; entropy and log_mass as in outputs.TokenLogprob."""

    logprob: float
    rank: int
    top_ids: np.ndarray
    top_logprobs: np.ndarray
    entropy: float | None = None
    log_mass: float | None = None


@dataclass(slots=True)
class Plan:
    """One step: `num_tokens[i]` tokens of `seqs[i]` are computed, from position `starts[i]` on, of `lengths[i]`."""

    seqs: list[Sequence] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)  # got a row in this step
    grown: list[Sequence] = field(default_factory=list)  # got a block in this step
    budget: int = 0
    prompt_logits: int = 0  # rows of logits spent on prompt_logprobs
    pooled: list[int] = field(default_factory=list)  # positions in seqs of those that want an embedding
    wait_reason: str = ""  # why no more of the waiting were admitted: budget, rows, blocks; "" when none is left
    leading: int = 0  # of the waiting, the first so many wait for a sibling's prefill instead

    def add(self, seq: Sequence, num_tokens: int) -> None:
        if seq.pooling is not None:
            self.pooled.append(len(self.seqs))
        if seq.params.prompt_logprobs is not None and seq.num_planned < seq.prompt_len:
            self.prompt_logits += num_tokens
        self.seqs.append(seq)
        self.num_tokens.append(num_tokens)
        self.starts.append(seq.num_planned)
        self.lengths.append(seq.expected_len)
        seq.in_flight += num_tokens

    def reaches_end(self, i: int) -> bool:
        """Whether a token is sampled for seqs[i]: the others have more of their prompt to come."""
        return self.starts[i] + self.num_tokens[i] == self.lengths[i]


@dataclass(slots=True)
class TokenOutput:
    """What a step did for one sequence. token is None when it ended without one (embedding, abort, error)."""

    seq: Sequence
    token: int | None
    finish_reason: str | None = None  # stop, length, abort, error
    stop_reason: int | None = None  # the stop token id that ended it
    error: str | None = None
    refused: bool = False  # the error lies in what was asked for
    logprobs: Logprobs | None = None  # of `token`
    prompt_logprobs: PromptLogprobs | None = None  # of the prompt tokens that this step's chunk predicts
    prompt_start: int = 0  # position of the first of them
    embedding: np.ndarray | None = None  # float64 [hidden]: the pooled hidden states, not normalised


class Scheduler:
    """Owns the queues. All times come from `clock`, seconds, monotonic.

    max_prompt_logits: most logits rows a step may spend on prompt_logprobs.
    """

    def __init__(
        self,
        blocks: BlockManager,
        events: EventLog,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefill_chunk: int,
        max_prompt_logits: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.blocks = blocks
        self.waiting: list[Sequence] = []  # both queues by priority, then arrival
        self.running: list[Sequence] = []
        self.latest = Plan()  # what was decided last
        self.preemptions = 0
        self.prompt_tokens = self.cached_tokens = 0  # of all requests that were admitted: the cache's hit rate
        self._events = events
        self._max_num_batched_tokens = max_num_batched_tokens
        self._prefill_chunk = prefill_chunk
        self._max_prompt_logits = max_prompt_logits
        self._watermark = max(1, blocks.num_blocks // 100)  # kept free at admission, for those already running
        self._rows = list(range(max_num_seqs - 1, -1, -1))  # free rows, lowest last
        self._clock = clock

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, seq: Sequence) -> None:
        insort(self.waiting, seq, key=_by_order)
        if self._events.enabled:
            self._emit_queued(seq)

    # Schedule

    def can_run_ahead(self) -> bool:
        """Whether `schedule` may be called while a step is under way: not where somebody would have to be preempted, or
        a grammar has to see the token that is to come."""
        needed = 0
        for seq in self.running:
            if seq.grammar is not None and seq.expected_len > len(seq):
                return False
            if seq.is_decoding and not seq.is_ending:
                needed += self.blocks.blocks_for(seq.expected_len) - len(seq.blocks)
        return needed <= self.blocks.num_free

    def schedule(self) -> Plan:
        """The next step, which builds on the one that is under way, if there is one. Empty when nothing is waiting or
        running, or nothing can be done before that one is booked."""
        self.latest = plan = Plan()
        decoding: list[Sequence] = []
        prefilling: list[Sequence] = []
        for seq in self.running:
            if not seq.is_ending:
                (decoding if seq.is_decoding else prefilling).append(seq)
        plan.budget = self._max_num_batched_tokens
        if decoding:
            plan.budget = min(plan.budget, len(decoding) + self._prefill_chunk)
        preempted = self._add_decoding(plan, decoding)
        budget = plan.budget - len(plan.seqs)
        for seq in prefilling:
            if budget and seq.status is Status.RUNNING:
                budget -= self._add_chunk(plan, seq, budget)
        if preempted:
            plan.wait_reason = "blocks"
        else:
            self._admit(plan, budget)
        return plan

    def _add_decoding(self, plan: Plan, decoding: list[Sequence]) -> bool:
        """Plan a token for each, and the blocks for it. Returns whether somebody was preempted for want of them."""
        preempted = False
        for seq in decoding:
            if seq.status is not Status.RUNNING:  # preempted for one before it
                continue
            had = len(seq.blocks)
            while not self.blocks.grow(seq, seq.expected_len):
                preempted = True
                if self._preempt_last() is seq:
                    break
            else:
                plan.add(seq, 1)
                if len(seq.blocks) > had:
                    plan.grown.append(seq)
        return preempted

    def _add_chunk(self, plan: Plan, seq: Sequence, budget: int) -> int:
        """Plan the next prefill chunk; returns its size, which may be 0."""
        chunk = min(seq.expected_len - seq.num_planned, budget)
        if seq.params.prompt_logprobs is not None:
            chunk = min(chunk, self._max_prompt_logits - plan.prompt_logits)
        if chunk:
            plan.add(seq, chunk)
        return chunk

    def _admit(self, plan: Plan, budget: int) -> None:
        """Take waiting sequences in order until one does not fit."""
        i = 0
        while i < len(self.waiting):
            if budget <= 0 or not self._rows:
                plan.wait_reason = "budget" if budget <= 0 else "rows"
                break
            seq = self.waiting[i]
            if self._waits_for_leader(seq):
                i += 1
                continue
            prefix = self.blocks.find_prefix(seq)
            watermark = self._watermark if self.running else 0
            if self.blocks.num_needed(seq, prefix, len(seq)) + watermark > self.blocks.num_free:
                plan.wait_reason = "blocks"
                break
            del self.waiting[i]
            self.blocks.admit(seq, prefix, len(seq))
            self._start(seq)
            plan.admitted.append(seq)
            budget -= self._add_chunk(plan, seq, budget)
        plan.leading = i

    def _waits_for_leader(self, seq: Sequence) -> bool:
        """The n answers to one prompt share its blocks: the first prefills, the others follow."""
        leader = seq.leader
        if leader is None or leader.status is Status.FINISHED or not self.blocks.max_stored_blocks:
            return False
        return leader.num_computed < leader.prompt_len

    def _start(self, seq: Sequence) -> None:
        seq.status, seq.row = Status.RUNNING, self._rows.pop()
        insort(self.running, seq, key=_by_order)
        now = self._clock()
        if seq.scheduled is None:
            seq.scheduled, seq.num_cached = now, min(seq.num_computed, seq.prompt_len)
            self.prompt_tokens += seq.prompt_len
            self.cached_tokens += seq.num_cached
        if self._events.enabled:
            self._events.emit(RequestScheduled(seq.arrival, seq.num_computed, now))

    def _preempt_last(self) -> Sequence:
        seq = self.running.pop()
        self.preemptions += 1
        if self._events.enabled:
            self._events.emit(RequestPreempted(seq.arrival, seq.num_computed, self._clock()))
        self._release(seq, Status.WAITING)
        insort(self.waiting, seq, key=_by_order)
        return seq

    def _release(self, seq: Sequence, status: Status) -> None:
        self.blocks.free(seq)
        self._rows.append(seq.row)
        seq.row, seq.status = -1, status

    # Update

    def update(self, plan: Plan, tokens: list[int]) -> list[TokenOutput]:
        """Book the step: tokens[i] was sampled for plan.seqs[i], if it reached its end. Whoever ended while the step
        was under way gets nothing."""
        outputs = []
        now = self._clock()
        for seq, num_tokens, token in zip(plan.seqs, plan.num_tokens, tokens, strict=True):
            if seq.status is not Status.RUNNING:
                continue
            before = seq.num_computed
            seq.num_computed += num_tokens
            seq.in_flight -= num_tokens
            self.blocks.store_full_blocks(seq, before)
            if seq.num_computed == len(seq):  # else a prefill chunk: more to come
                outputs.append(_advance(seq, token, now))
        if self._events.enabled:
            self._emit_tokens(outputs, now)
        for output in outputs:
            if output.finish_reason:
                self._finish(output.seq, output)
        return outputs

    def finish(self, request_id: str, index: int | None, reason: str, error: str | None = None) -> list[TokenOutput]:
        """End a request, or one of its sequences, from outside. Unknown ids are ignored: it may have ended already."""
        named = [s for s in (*self.running, *self.waiting) if s.request_id == request_id and index in (None, s.index)]
        return [self._finish(seq, TokenOutput(seq, None, reason, error=error)) for seq in named]

    def _finish(self, seq: Sequence, output: TokenOutput) -> TokenOutput:
        if seq.status is Status.RUNNING:
            self.running.remove(seq)
            self._release(seq, Status.FINISHED)
        else:
            self.waiting.remove(seq)
            seq.status = Status.FINISHED
        if self._events.enabled:
            reason = output.finish_reason or "error"
            self._events.emit(RequestFinished(seq.arrival, reason, seq.output_len, self._clock()))
        return output

    def _emit_queued(self, seq: Sequence) -> None:
        leader = None if seq.leader is None else seq.leader.arrival
        prompt = seq.tokens[: seq.prompt_len].tolist()
        asked = (seq.params.distribution(), seq.params.priority)
        self._events.emit(
            RequestQueued(seq.arrival, seq.request_id, seq.index, prompt, seq.max_tokens, leader, *asked, seq.arrived)
        )

    def _emit_tokens(self, outputs: list[TokenOutput], now: float) -> None:
        sampled = [(output.seq.arrival, output.token) for output in outputs if output.token is not None]
        if sampled:
            self._events.emit(TokensSampled([seq for seq, _ in sampled], [token for _, token in sampled], now))

    def check_integrity(self) -> None:
        """Books against queues. Raises RuntimeError saying what does not add up."""
        self.blocks.check_integrity(self.running)
        for seq in self.waiting:
            if seq.blocks or seq.row != -1 or seq.in_flight or seq.status is not Status.WAITING:
                raise RuntimeError(
                    f"waiting sequence {seq.request_id}/{seq.index} holds blocks or a row, or is computed"
                )
        rows = [seq.row for seq in self.running] + self._rows
        if sorted(rows) != list(range(len(rows))):
            raise RuntimeError(f"rows are lost or doubled: {sorted(rows)}")
        for seq in self.running:
            if len(seq.blocks) < self.blocks.blocks_for(seq.num_computed):
                raise RuntimeError(f"sequence {seq.request_id}/{seq.index} has computed tokens outside its blocks")
        for queue in (self.waiting, self.running):
            if [seq.order for seq in queue] != sorted(seq.order for seq in queue):
                raise RuntimeError("a queue is not in order of priority and arrival")


def _advance(seq: Sequence, token: int, now: float) -> TokenOutput:
    """What a sequence gets for a step in which everything of it was computed; only here is a token appended."""
    grammar = seq.grammar
    if grammar is not None and token not in (BAD_LOGITS, *seq.stop_ids) and not grammar.advance(token):
        error = f"the structured output cannot go on after {seq.output_len} tokens: {grammar.error}"
        return TokenOutput(seq, None, "error", error=error, refused=True)
    if token == BAD_LOGITS:
        error = "the model gave NaN logits for this request; its weights or this prompt make it overflow"
        return TokenOutput(seq, None, "error", error=error)
    if seq.pooling is not None:
        return TokenOutput(seq, None, "stop")
    seq.append(token)
    if seq.first_token is None:
        seq.first_token = now
    output = TokenOutput(seq, token)
    if token in seq.stop_ids and (seq.output_len > seq.params.min_tokens or grammar is not None):
        output.finish_reason, output.stop_reason = "stop", token
    elif grammar is not None and grammar.is_complete:
        output.finish_reason = "stop"
    elif seq.output_len >= seq.max_tokens:
        output.finish_reason = "length"
    return output
