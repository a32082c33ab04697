"""The event log: events go to subscribers, and into a ring while anybody reads it. With neither, none is built."""

import logging
import time
from collections.abc import Callable

from vllm_nb.events import Event

log = logging.getLogger(__name__)

CAPACITY = 2**16  # events the ring holds: minutes of a busy engine, tens of megabytes at most
LINGER = 30.0  # seconds without a reader after which the ring is given up; a reader may reconnect within


class Ring:
    """The latest CAPACITY events, numbered from `start`. One thread appends, any thread reads."""

    def __init__(self, start: int):
        self.start = self.end = start  # end: number of the next event
        self.read_at = time.monotonic()
        self._events: list[Event] = []

    def append(self, event: Event) -> None:
        if len(self._events) < CAPACITY:
            self._events.append(event)
        else:
            self._events[(self.end - self.start) % CAPACITY] = event
        self.end += 1

    def read(self, offset: int, most: int) -> list[Event] | None:
        """Up to `most` (below CAPACITY) events from number `offset` on; None when they are not all here any more."""
        self.read_at = time.monotonic()
        end = self.end
        if not max(self.start, end - CAPACITY) <= offset <= end:
            return None
        first, last = ((n - self.start) % CAPACITY for n in (offset, min(end, offset + most)))
        events = self._events[first:last] if first <= last else self._events[first:] + self._events[:last]
        return events if offset >= self.end - CAPACITY else None  # overwritten while they were copied


class EventLog:
    """Passes events on, in order, on the engine thread. Emitters test `enabled` before they build one."""

    def __init__(self) -> None:
        self.enabled = False
        self.ring: Ring | None = None
        self._next_start = 0
        self._subscribers: tuple[Callable[[Event], None], ...] = ()

    def subscribe(self, subscriber: Callable[[Event], None]) -> Callable[[], None]:
        """Call `subscriber` with each event; it must be quick. One that raises is told no more. Returns the way to end
        it."""
        self._subscribers += (subscriber,)
        self.enabled = True
        return lambda: self._drop(subscriber)

    def _drop(self, subscriber: Callable[[Event], None]) -> None:
        self._subscribers = tuple(s for s in self._subscribers if s is not subscriber)
        self.enabled = bool(self._subscribers or self.ring)

    def listen(self) -> Ring:
        """The ring, begun now if nobody has been reading. Its events follow on the engine's present state."""
        if self.ring is None:
            self.ring = Ring(self._next_start)
            self.enabled = True
        self.ring.read_at = time.monotonic()
        return self.ring

    def expire(self, now: float) -> None:
        """Give the ring up when nobody has read it for a while."""
        if self.ring is not None and now - self.ring.read_at > LINGER:
            self._next_start = self.ring.end + 1  # a hole in the numbers, so that a late reader sees its loss
            self.ring = None
            self.enabled = bool(self._subscribers)

    def emit(self, event: Event) -> None:
        if self.ring is not None:
            self.ring.append(event)
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:  # its mistake: requests go on
                log.exception("a subscriber of events has failed, and is told no more: %r", subscriber)
                self._drop(subscriber)
