"""A stretch of an engine's life, recorded or followed live: its events, and the state after any of its steps."""

import json
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_nb.events import Batch, Event, EventFormatError, StepDone
from vllm_nb.inspection.view import EngineView

if TYPE_CHECKING:
    from vllm_nb.notebook.panels.panel import Panel

MOST_KEYFRAMES = 32  # copies of the state, to seek from
FIRST_SPACING = 1024  # events between two of them at first; it doubles when there are too many


class Timeline:
    """Fed with batches, the first of which has a snapshot; may be read from other threads meanwhile. Of more than
    `most_events`, where given, the oldest fifth goes.

    lost: events that could not be had, because the reader was too slow or away. Raises EventFormatError when events do
    not follow on each other.
    """

    def __init__(self, first: Batch, *, most_events: int | None = None):
        self.lost = 0
        self.texts: dict[int, str] = {}
        self.player: Any = None  # what its panels share, once there are any
        self._most_events = most_events
        self._lock = threading.RLock()
        self._begin(first)

    def _begin(self, batch: Batch) -> None:
        if batch.snapshot is None:
            raise EventFormatError("the events begin without a snapshot of the engine's state")
        self._view = EngineView.from_snapshot(batch.snapshot, batch.offset)
        self.info = self._view.info
        self._events: list[Event] = []
        self._first = batch.offset  # number of _events[0]
        self._spacing = FIRST_SPACING
        self._keyframes = [self._view.copy()]
        self._steps: list[int] = []  # numbers of the steps
        self._ends: list[int] = []  # and of the event after each StepDone
        self._times: list[float] = []  # and when it was
        self._take(batch)

    def extend(self, batch: Batch) -> None:
        """Take over what has happened."""
        with self._lock:
            self.lost += batch.lost
            if batch.snapshot is not None:
                self._begin(batch)
            else:
                self._take(batch)

    def _take(self, batch: Batch) -> None:
        self.texts.update(batch.texts)
        if batch.offset != self._view.offset:
            raise EventFormatError(f"event {self._view.offset} is missing: the next one has number {batch.offset}")
        view = self._view
        for event in batch.events:
            view.apply(event)
            self._events.append(event)
            if type(event) is StepDone:
                self._steps.append(event.step)
                self._ends.append(view.offset)
                self._times.append(event.time)
                if view.offset - self._keyframes[-1].offset >= self._spacing:
                    self._add_keyframe()
        if self._most_events is not None and len(self._events) > self._most_events:
            self._drop_oldest()

    def _add_keyframe(self) -> None:
        self._keyframes.append(self._view.copy())
        if len(self._keyframes) > MOST_KEYFRAMES:
            del self._keyframes[1::2]
            self._spacing *= 2

    def _drop_oldest(self) -> None:
        """Begin at a later keyframe."""
        wanted = self._first + len(self._events) // 5
        keep = min(bisect_left(self._keyframes, wanted, key=lambda view: view.offset), len(self._keyframes) - 1)
        del self._keyframes[:keep]
        first = self._keyframes[0].offset
        del self._events[: first - self._first]
        self._first = first
        steps = bisect_right(self._ends, first)
        del self._steps[:steps], self._ends[:steps], self._times[:steps]

    # Read

    def __len__(self) -> int:
        """How many events there are."""
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        with self._lock:
            return iter(self._events.copy())

    @property
    def steps(self) -> range:
        """The steps that can be asked for, the state before the first of them included."""
        with self._lock:
            return range(self._keyframes[0].step, self._view.step + 1)

    def step_at(self, time: float) -> int:
        """The last step that was done by then, on the engine's clock."""
        with self._lock:
            done = bisect_right(self._times, time)
            return self._steps[done - 1] if done else self.steps.start

    def time_of(self, step: int) -> float:
        """When a step was done, on the engine's clock."""
        with self._lock:
            done = bisect_right(self._steps, step)
            return self._times[done - 1] if done else self._keyframes[0].time

    def between(self, start: int, stop: int | None = None) -> list[Event]:
        """The events from number `start` on, up to number `stop` where given; those that are no longer kept are left
        out."""
        with self._lock:
            last = None if stop is None else max(stop - self._first, 0)
            return self._events[max(start - self._first, 0) : last]

    @property
    def first(self) -> int:
        """Number of the first event that is kept."""
        return self._first

    @property
    def end(self) -> EngineView:
        """The newest state, a copy."""
        with self._lock:
            return self._view.copy()

    def at(self, step: int) -> EngineView:
        """The state after a step, a copy. Raises ValueError for a step that is not in here."""
        with self._lock:
            if step not in self.steps:
                raise ValueError(f"step {step} is not in here; there are {self.steps.start} to {self.steps.stop - 1}")
            return self._at_offset(self._offset_after(step))

    def near(self, step: int) -> EngineView:
        """The state after that step of those in here that is nearest to it, a copy."""
        with self._lock:
            return self._at_offset(self._offset_after(step))

    def _offset_after(self, step: int) -> int:
        before = bisect_right(self._steps, step)
        return self._ends[before - 1] if before else self._first

    def _at_offset(self, offset: int) -> EngineView:
        nearest = bisect_right(self._keyframes, offset, key=lambda view: view.offset) - 1
        view = self._keyframes[nearest].copy()
        for event in self._events[view.offset - self._first : offset - self._first]:
            view.apply(event)
        return view

    def advance(self, view: EngineView, step: int | None = None) -> None:
        """Bring a view of this timeline forward, to the end of a step or to the newest state; it keeps its set of
        changed blocks. A view from before a loss, or of a later step, cannot be: ValueError."""
        with self._lock:
            end = self._view.offset if step is None or step >= self._view.step else self._offset_after(step)
            if not self._first <= view.offset <= end or view.info is not self.info:
                raise ValueError("this view cannot be brought there; ask for a new one with at(step)")
            for event in self._events[view.offset - self._first : end - self._first]:
                view.apply(event)

    def panel(self, name: str, **settings: Any) -> "Panel":
        """A panel of this stretch of time, by its name in docs/glossary.md; the same one each time."""
        from vllm_nb.notebook.panels import open_panel

        return open_panel(self, name, settings)

    def to_chrome_trace(self, path: str | Path) -> Path:
        """Write all steps as a trace for ui.perfetto.dev and chrome://tracing. Raises VllmNbError where it cannot be
        written."""
        from vllm_nb.inspection.histories import history_of
        from vllm_nb.inspection.text_file import write_text
        from vllm_nb.inspection.trace import chrome_trace

        return write_text(Path(path).expanduser(), json.dumps(chrome_trace(history_of(self))))

    def text_of(self, token_ids: list[int]) -> str:
        """Tokens for the eye, on one line: special ones by name, what cannot be printed as Python escapes it."""
        text = "".join(self.texts.get(token, f"<{token}>") for token in token_ids)
        return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
