"""Follows an engine on a thread of its own, into a timeline or a file."""

import threading
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from vllm_nb.errors import EngineDeadError, VllmNbError
from vllm_nb.events import Batch
from vllm_nb.inspection.recording import RecordingFile, check_writable
from vllm_nb.inspection.timeline import Timeline

MOST_EVENTS = 500_000  # that a live timeline keeps
_PATIENCE = 10.0  # seconds for an engine to answer, and for a thread of ours to end


class Source(Protocol):
    """An engine that can be followed; see inspection.observed.Observed."""

    def events(self, offset: int | None = None, *, follow: bool = True) -> Generator[Batch, None, None]: ...

    def memory(self) -> dict[str, Any]: ...

    def go_on(self, token_ids: list[int], **params: Any) -> None: ...

    @property
    def read_rate(self) -> float: ...


class Follower:
    """Reads `first`, then hands each further batch to `take` on a thread, until it is closed or the engine ends.

    Raises EngineDeadError when there is no engine.
    """

    def __init__(self, source: Source):
        self.error: VllmNbError | None = None  # why it has ended by itself
        self._source = source
        self._batches = source.events()
        self.first = next(self._batches)
        self._offset = self.first.offset + len(self.first.events)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, take: Callable[[Batch], None], name: str) -> None:
        self._take = take
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with closing(self._batches) as batches:
                for batch in batches:
                    self._receive(batch)
                    if self._closed.is_set():
                        break
        except VllmNbError as error:
            self.error = error

    def _receive(self, batch: Batch) -> None:
        self._take(batch)
        self._offset = batch.offset + len(batch.events)

    @property
    def ended(self) -> bool:
        return self._closed.is_set() or self.error is not None

    def close(self) -> None:
        """Take what has happened until now, and end. Safe to call twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE)
        if self.error is None:
            try:
                for batch in self._source.events(self._offset, follow=False):
                    self._receive(batch)
            except EngineDeadError as error:
                self.error = error


class LiveTimeline(Timeline):
    """A timeline that grows as the engine works, until it is closed. Raises EngineDeadError."""

    def __init__(self, source: Source):
        self._follower = Follower(source)
        super().__init__(self._follower.first, most_events=MOST_EVENTS)
        self.source = source
        self._follower.start(self.extend, "vllm-nb-timeline")

    @property
    def error(self) -> VllmNbError | None:
        """Why it does not grow any more, where that was not asked for."""
        return self._follower.error

    @property
    def ended(self) -> bool:
        """Whether it does not grow any more."""
        return self._follower.ended

    def close(self) -> None:
        """Stop following. What there is stays."""
        self._follower.close()


class Recorder:
    """Records an engine into a file until it is stopped: `with client.record(FILE): ...`."""

    def __init__(self, source: Source, path: str | Path, *, overwrite: bool = False):
        check_writable(path, overwrite=overwrite)
        self._follower = Follower(source)
        self._file = RecordingFile(path, overwrite=overwrite)
        self._file.write(self._follower.first)
        self._follower.start(self._file.write, "vllm-nb-recorder")

    @property
    def path(self) -> Path:
        return self._file.path

    @property
    def events(self) -> int:
        """How many are in the file."""
        return self._file.events

    def stop(self) -> Path:
        """Complete the file, with all that has happened until now. Returns where it is. Safe to call twice."""
        self._follower.close()
        self._file.close()
        return self.path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
