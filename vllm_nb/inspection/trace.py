"""A history as a trace for Perfetto (ui.perfetto.dev) and chrome://tracing.

Format: "Trace Event Format", the Chrome project's document, in its JSON object form. One process shows the engine, its
steps with their phases and counters; another the requests, a thread each.
"""

from collections.abc import Iterator
from typing import Any

from vllm_nb.inspection.history import PHASES, History, Lane, Span

ENGINE, REQUESTS = 1, 2  # process ids in the trace
_STEPS = 1  # thread id

Record = dict[str, Any]


def chrome_trace(history: History, first: int | None = None, last: int | None = None) -> dict[str, Any]:
    """Plain data for json.dump: steps `first` to `last`, all of them by default. Times are microseconds from the start
    of the first step."""
    steps = _Steps(history, first, last)
    return {
        "traceEvents": [*_names(history), *_engine(history, steps), *_requests(history, steps)],
        "displayTimeUnit": "ms",
        "otherData": {"engine": history.info.model, "version": history.info.version},
    }


class _Steps:
    """Begin and end of each step, microseconds."""

    def __init__(self, history: History, first: int | None, last: int | None):
        begin = 0 if first is None else history.index_of(first - 1)
        self.indices = range(begin, len(history.steps) if last is None else history.index_of(last))
        columns = history.columns
        self.zero = columns["time"][begin] - columns["seconds"][begin] if self.indices else 0.0
        self._starts: dict[int, float] = {}
        self._ends: dict[int, float] = {}
        end = 0.0
        for i in self.indices:  # rounded times must not overlap
            self._starts[history.steps[i]] = max(end, self._at(columns["time"][i] - columns["seconds"][i]))
            end = self._ends[history.steps[i]] = self._at(columns["time"][i])

    def _at(self, time: float) -> float:
        return round((time - self.zero) * 1e6, 3)

    def __contains__(self, span: Span) -> bool:
        return bool(self._ends) and span.first <= max(self._ends) and span.last >= min(self._ends)

    def start(self, step: int) -> float:
        """That of the first known step from this one on."""
        return self._starts[max(step, min(self._starts))]

    def end(self, step: int) -> float:
        return self._ends[min(step, max(self._ends))]


def _names(history: History) -> Iterator[Record]:
    for process, name in ((ENGINE, f"engine {history.info.model}"), (REQUESTS, "requests")):
        yield {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}
    yield {"ph": "M", "name": "thread_name", "pid": ENGINE, "tid": _STEPS, "args": {"name": "steps"}}


def _engine(history: History, steps: _Steps) -> Iterator[Record]:
    columns = history.columns
    for i in steps.indices:
        step = history.steps[i]
        start, end = steps.start(step), steps.end(step)
        counts = {name: int(columns[name][i]) for name in ("prefill", "decode", "budget")}
        yield _slice(ENGINE, _STEPS, f"step {step}", start, end, counts)
        at = start
        for phase in PHASES:
            until = min(round(at + columns[phase][i] * 1e6, 3), end)
            yield _slice(ENGINE, _STEPS, phase, at, until, {})
            at = until
        yield _counter("sequences", end, {name: int(columns[name][i]) for name in ("running", "waiting")})
        yield _counter("tokens", end, {name: int(columns[name][i]) for name in ("prefill", "decode")})
        yield _counter("KV blocks", end, {"used": int(columns["used"][i])})


def _requests(history: History, steps: _Steps) -> Iterator[Record]:
    for thread, lane in enumerate((lane for lane in history.lanes.values() if _shown(lane, steps)), 1):
        name = f"{lane.request_id}/{lane.choice}"
        yield {"ph": "M", "name": "thread_name", "pid": REQUESTS, "tid": thread, "args": {"name": name}}
        for span in lane.spans:
            if span in steps:
                yield _span(thread, span, steps)


def _shown(lane: Lane, steps: _Steps) -> bool:
    return any(span in steps for span in lane.spans)


def _span(thread: int, span: Span, steps: _Steps) -> Record:
    arguments: Record = {"tokens": span.tokens} | ({"reason": span.note} if span.note else {})
    if span.kind in ("waiting", "prefill", "decode"):
        return _slice(REQUESTS, thread, span.kind, steps.start(span.first), steps.end(span.last), arguments)
    at = steps.end(span.first) if span.kind == "finished" else steps.start(span.first)
    return {"ph": "i", "s": "t", "name": span.kind, "pid": REQUESTS, "tid": thread, "ts": at, "args": arguments}


def _slice(process: int, thread: int, name: str, start: float, end: float, arguments: Record) -> Record:
    duration = max(0.0, round(end - start, 3))
    return {"ph": "X", "name": name, "pid": process, "tid": thread, "ts": start, "dur": duration, "args": arguments}


def _counter(name: str, at: float, values: dict[str, int]) -> Record:
    return {"ph": "C", "name": name, "pid": ENGINE, "tid": _STEPS, "ts": at, "args": values}
