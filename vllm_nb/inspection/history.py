"""What happened over time, in columns: each step, each latency, and each sequence's way through the steps.

A view (inspection.view) knows how the engine is; a history knows how it was. Both are fed with the same events.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm_nb import events
from vllm_nb.events import Event, StepDone
from vllm_nb.inspection.view import EngineView, SequenceView

MOST_STEPS = 100_000  # that are kept; the oldest fifth goes when there are more
PHASES = ("schedule", "prepare", "forward", "sample", "update")
COLUMNS = (
    *("time", "seconds", "prefill", "decode", "running", "waiting", "used", "read", "budget"),
    *PHASES,
)


@dataclass
class Span:
    """Part of a sequence's way: steps first to last, both included. tokens: computed (prefill, decode), found (cached),
    or thrown away (preempted); note: why it waits, or how it ended.

    kind: waiting, cached, prefill, decode, preempted, finished. The kinds without duration have one step.
    """

    kind: str
    first: int
    last: int
    tokens: int = 0
    note: str = ""


@dataclass
class Lane:
    """One sequence. start, end: times, end None while it lives."""

    sequence: int
    request_id: str
    choice: int
    prompt_len: int
    start: float
    spans: list[Span] = field(default_factory=list)
    end: float | None = None

    @property
    def first_step(self) -> int:
        return self.spans[0].first if self.spans else 0

    @property
    def last_step(self) -> int:
        return self.spans[-1].last if self.spans else 0


class Latencies:
    """Seconds, each with the step at whose end it was known, in order."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.seconds = array("d")

    def add(self, step: int, seconds: float) -> None:
        self.steps.append(step)
        self.seconds.append(seconds)

    def newest(self, step: int, most: int) -> "array[float]":
        """Up to `most` of those known by the end of a step."""
        end = bisect_right(self.steps, step)
        return self.seconds[max(0, end - most) : end]

    def drop_before(self, step: int) -> None:
        gone = bisect_left(self.steps, step)
        del self.steps[:gone], self.seconds[:gone]


@dataclass
class _Clock:
    """What is measured of a sequence that is under way."""

    queued: float
    first_token: float | None = None
    last_token: float | None = None


class History:
    """Begins with a view, then takes the events that follow it. Not thread-safe.

    steps[i] is the number of a step, `columns[name][i]` what is known of it: time of its end and seconds it took;
    tokens of prefill and of decode; sequences running and waiting and blocks used after it; tokens of context read by
    decoding sequences; token budget; seconds by phase. ttft, itl, tpot: time to first token, between two tokens, and a
    request's mean time per token after the first.
    """

    def __init__(self, view: EngineView):
        self.info = view.info
        self.steps = array("q")
        self.columns = {name: array("d") for name in COLUMNS}
        self.ttft, self.itl, self.tpot = Latencies(), Latencies(), Latencies()
        self.lanes: dict[int, Lane] = {}
        self._view = view.copy()
        self._clocks: dict[int, _Clock] = {}
        self._sampled: set[int] = set()
        self._found: dict[int, int] = {}  # cached tokens of who was admitted for a step that has not ended yet
        for number in (*view.running, *view.waiting):
            self._enter(view.sequences[number])

    @property
    def offset(self) -> int:
        """Number of the next event."""
        return self._view.offset

    def apply(self, event: Event) -> None:
        """Take over what happened. Raises EventFormatError for an event that cannot follow."""
        if type(event) is events.RequestPreempted:
            self._preempted(event)  # before the view forgets what was computed
        self._view.apply(event)
        if (note := _NOTES.get(type(event))) is not None:
            note(self, event)

    # Events

    def _enter(self, seq: SequenceView) -> None:
        lane = Lane(seq.sequence, seq.request_id, seq.choice, seq.prompt_len, seq.queued)
        self.lanes[seq.sequence] = lane
        self._clocks[seq.sequence] = _Clock(seq.queued, seq.first_token)

    def _queued(self, event: events.RequestQueued) -> None:
        self._enter(self._view.sequences[event.sequence])

    def _scheduled(self, event: events.RequestScheduled) -> None:
        self._found[event.sequence] = event.cached_tokens

    def _preempted(self, event: events.RequestPreempted) -> None:
        step = self._view.step + 1
        self.lanes[event.sequence].spans.append(Span("preempted", step, step, event.computed_tokens))

    def _finished(self, event: events.RequestFinished) -> None:
        lane, clock = self.lanes[event.sequence], self._clocks.pop(event.sequence)
        step = self._view.step + (event.sequence in self._sampled)
        lane.end = event.time
        lane.spans.append(Span("finished", step, step, event.output_tokens, event.reason))
        if clock.first_token is not None and clock.last_token is not None and event.output_tokens > 1:
            self.tpot.add(step, (clock.last_token - clock.first_token) / (event.output_tokens - 1))

    def _tokens(self, event: events.TokensSampled) -> None:
        step = self._view.step + 1
        self._sampled = set(event.sequences)
        for number in event.sequences:
            clock = self._clocks[number]
            if clock.first_token is None:
                clock.first_token = event.time
                self.ttft.add(step, event.time - clock.queued)
            elif clock.last_token is not None:
                self.itl.add(step, event.time - clock.last_token)
            clock.last_token = event.time

    def _step(self, event: StepDone) -> None:
        prefill, decode, read = 0, 0, 0.0
        for number, count in zip(event.sequences, event.num_tokens, strict=True):
            seq = self._view.sequences[number]
            length = len(seq.tokens) - (number in self._sampled)
            computed = (seq.computed if seq.status == "running" else seq.last_computed) - count
            decoding = count == 1 and length > seq.prompt_len and computed == length - 1
            self._extend(self.lanes[number], "decode" if decoding else "prefill", event.step, count)
            if decoding:
                decode, read = decode + 1, read + self._read_by(length)
            else:
                prefill += count
        for number in self._view.waiting:
            self._wait(self.lanes[number], event.step, self._view.wait_reason(number))
        if self._found:  # with overlap they may be of the next step, without those whose request ended before
            self._found = {number: tokens for number, tokens in self._found.items() if number in self._clocks}
        phases = event.schedule, event.prepare, event.forward, event.sample, event.update
        counts = prefill, decode, len(self._view.running), len(self._view.waiting), self._view.num_used, read
        values = (event.time, sum(phases), *counts, event.token_budget, *phases)
        self.steps.append(event.step)
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)
        self._sampled = set()
        if len(self.steps) > MOST_STEPS:
            self._drop_oldest()

    def _read_by(self, length: int) -> float:
        """Tokens of context that a sequence of that length reads; a layer with a window reads that much at most."""
        info = self.info
        if info.sliding_window is None:
            return length
        sliding = sum(info.sliding_layers) if info.sliding_layers is not None else info.num_layers
        share = sliding / info.num_layers
        return length * (1 - share) + min(length, info.sliding_window) * share

    def _extend(self, lane: Lane, kind: str, step: int, tokens: int) -> None:
        """Add a step to the lane; ticks of decoding that follow on each other are one span."""
        end = lane.spans.pop() if lane.spans and lane.spans[-1].kind == "finished" else None
        if found := self._found.pop(lane.sequence, 0):
            lane.spans.append(Span("cached", step, step, found))
        last = lane.spans[-1] if lane.spans else None
        if last is not None and kind == "decode" == last.kind and last.last == step - 1:
            last.last, last.tokens = step, last.tokens + tokens
        else:
            lane.spans.append(Span(kind, step, step, tokens))
        if end is not None:
            lane.spans.append(end)

    def _wait(self, lane: Lane, step: int, reason: str) -> None:
        last = lane.spans[-1] if lane.spans else None
        if last is not None and last.kind == "waiting" and last.note == reason and last.last == step - 1:
            last.last = step
        else:
            lane.spans.append(Span("waiting", step, step, note=reason))

    def _drop_oldest(self) -> None:
        gone = len(self.steps) // 5
        first = self.steps[gone]
        del self.steps[:gone]
        for column in self.columns.values():
            del column[:gone]
        for latencies in (self.ttft, self.itl, self.tpot):
            latencies.drop_before(first)
        for number, lane in list(self.lanes.items()):
            if lane.end is not None and lane.last_step < first:
                del self.lanes[number]
            else:
                lane.spans = [span for span in lane.spans if span.last >= first]

    # Questions

    def index_of(self, step: int) -> int:
        """How many of the known steps there are up to this one."""
        return bisect_right(self.steps, step)

    def lanes_between(self, first: int, last: int) -> list[Lane]:
        """Those with anything in these steps, in order of arrival."""
        found = (lane for lane in self.lanes.values() if lane.spans)
        return sorted(
            (lane for lane in found if lane.first_step <= last and lane.last_step >= first),
            key=lambda lane: lane.sequence,
        )


_NOTES: dict[type, Callable[[History, Any], None]] = {
    events.RequestQueued: History._queued,
    events.RequestScheduled: History._scheduled,
    events.RequestFinished: History._finished,
    events.TokensSampled: History._tokens,
    events.StepDone: History._step,
}
