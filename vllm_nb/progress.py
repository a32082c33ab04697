"""Progress of long work (download, load, pack, compile): who does the work reports, whoever watches shows.

    with progress.task("Loading weights", total=n, unit="tensors") as advance:
        advance(1)

Nothing is shown until a sink is added: the terminal adds a bar, the engine process passes reports on to its clients.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Report:
    phase: str  # what is being done, in the present participle: "Loading weights"
    done: float
    total: float | None  # None: unknown
    unit: str  # "B" for bytes, or a plural noun
    finished: bool = False


Sink = Callable[[Report], None]
_sinks: list[Sink] = []


def add_sink(sink: Sink) -> Callable[[], None]:
    """Send every report to `sink`, called in the working thread; returns the function that removes it."""
    _sinks.append(sink)
    return lambda: _sinks.remove(sink)


@contextmanager
def task(phase: str, total: float | None = None, unit: str = "") -> Iterator[Callable[[float], None]]:
    """A piece of long work; yields `advance(amount)`. The last report has `finished` set, also after an error."""
    done = 0.0

    def report(finished: bool = False) -> None:
        for sink in tuple(_sinks):
            sink(Report(phase, done, total, unit, finished))

    def advance(amount: float = 1) -> None:
        nonlocal done
        done += amount
        report()

    report()
    try:
        yield advance
    finally:
        report(finished=True)
