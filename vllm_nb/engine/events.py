"""What happens in the engine, as typed events. Whoever watches subscribes; with no watcher, nothing is built.

All block numbers are physical; times are seconds on the monotonic clock. Sequences are named (request_id, index).
"""

from collections.abc import Callable
from dataclasses import dataclass

SequenceId = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RequestQueued:
    sequence: SequenceId
    prompt_tokens: int
    time: float


@dataclass(frozen=True, slots=True)
class RequestScheduled:
    """Admitted into the running set; after a preemption once more."""

    sequence: SequenceId
    cached_tokens: int
    time: float


@dataclass(frozen=True, slots=True)
class RequestPreempted:
    sequence: SequenceId
    computed_tokens: int  # thrown away, to be computed again
    time: float


@dataclass(frozen=True, slots=True)
class RequestFinished:
    sequence: SequenceId
    reason: str  # stop, length, abort, error
    output_tokens: int
    time: float


@dataclass(frozen=True, slots=True)
class BlocksAllocated:
    sequence: SequenceId
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlocksReused:
    """Taken from the prefix cache at admission."""

    sequence: SequenceId
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlocksFreed:
    """Given up by a sequence; the content of a stored block stays until it is evicted."""

    sequence: SequenceId
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlockStored:
    """A block filled and entered the prefix cache."""

    block: int
    hash: bytes
    parent: bytes
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlockEvicted:
    block: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class TokenSampled:
    sequence: SequenceId
    token_id: int
    position: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """One pass of the step loop. batch: (sequence, tokens computed); phases in seconds."""

    step: int
    batch: tuple[tuple[SequenceId, int], ...]
    token_budget: int
    waiting: int
    schedule: float
    prepare: float
    forward: float
    sample: float
    update: float
    time: float


Event = (
    RequestQueued
    | RequestScheduled
    | RequestPreempted
    | RequestFinished
    | BlocksAllocated
    | BlocksReused
    | BlocksFreed
    | BlockStored
    | BlockEvicted
    | TokenSampled
    | StepDone
)


class EventLog:
    """Passes events to subscribers, in order, on the engine thread. Emitters test `enabled` before they build one."""

    def __init__(self) -> None:
        self._subscribers: tuple[Callable[[Event], None], ...] = ()
        self.enabled = False

    def subscribe(self, subscriber: Callable[[Event], None]) -> Callable[[], None]:
        """Call `subscriber` with each event; it must be quick and must not raise. Returns the way to end it."""
        self._subscribers += (subscriber,)
        self.enabled = True

        def unsubscribe() -> None:
            self._subscribers = tuple(s for s in self._subscribers if s is not subscriber)
            self.enabled = bool(self._subscribers)

        return unsubscribe

    def emit(self, event: Event) -> None:
        for subscriber in self._subscribers:
            subscriber(event)
