"""What happens in the engine, as typed events, and how they travel. docs/events.md says what each one means.

Blocks are physical block numbers, times are seconds on the engine's monotonic clock. A sequence, one of a request's n
answers, goes by its number, which is also the order of arrival: RequestQueued says to which request it belongs.
On the wire an event is a JSON array, [name, field, field, ...], and lists are never changed once they are in an event.
"""

import json
from typing import Any, NamedTuple

from vllm_nb.errors import VllmNbError

VERSION = 2  # goes up when an event changes its meaning or its fields
POLL = 0.1  # seconds between two looks at the log: panels draw no oftener, and a look gets in the way of the kernels
HEARTBEAT = 0.5  # seconds after which a reader is told that nothing has happened


class RequestQueued(NamedTuple):
    """A sequence, number `choice` of its request's n, has come and waits. sampling: what shapes its distribution."""

    sequence: int
    request_id: str
    choice: int
    prompt: list[int]
    max_tokens: int
    leader: int | None
    sampling: dict[str, Any]
    priority: int
    time: float


class RequestScheduled(NamedTuple):
    """Admitted into the running set; after a preemption once more."""

    sequence: int
    cached_tokens: int
    time: float


class RequestPreempted(NamedTuple):
    """Sent back to the queue for want of blocks; `computed_tokens` are thrown away, to be computed again."""

    sequence: int
    computed_tokens: int
    time: float


class RequestFinished(NamedTuple):
    """Ended. reason: stop, length, abort or error."""

    sequence: int
    reason: str
    output_tokens: int
    time: float


class BlocksAllocated(NamedTuple):
    """Fresh blocks, added to the end of the sequence's block table."""

    sequence: int
    blocks: list[int]


class BlocksReused(NamedTuple):
    """Blocks taken from the prefix cache at admission, the beginning of the sequence's block table."""

    sequence: int
    blocks: list[int]


class BlocksFreed(NamedTuple):
    """The whole block table, given up; the content of a stored block stays until it is evicted."""

    sequence: int
    blocks: list[int]


class BlockStored(NamedTuple):
    """A block filled and can be found again by its hash. parent: hash of the block before it, "" for the first."""

    block: int
    hash: str
    parent: str
    token_ids: list[int]


class BlockEvicted(NamedTuple):
    """A stored block's content is forgotten."""

    block: int
    hash: str


class TokensSampled(NamedTuple):
    """What a step appended: token_ids[i] to sequences[i]."""

    sequences: list[int]
    token_ids: list[int]
    time: float


class TokenLogprobs(NamedTuple):
    """For a sampled token of a request that asked for logprobs: under the model itself, before any filter. entropy and
    log_mass: as in outputs.TokenLogprob."""

    sequence: int
    position: int
    token_id: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]
    entropy: float | None
    log_mass: float | None


class StepDone(NamedTuple):
    """A pass of the step loop: num_tokens[i] tokens of sequences[i] were computed; phases in seconds.

    wait_reason: why no more of the waiting were admitted ("" when none is left); leading: how many at the head of the
    queue wait for a sibling's prefill instead.
    """

    step: int
    sequences: list[int]
    num_tokens: list[int]
    token_budget: int
    waiting: int
    wait_reason: str
    leading: int
    schedule: float
    prepare: float
    forward: float
    sample: float
    update: float
    time: float


class EnginePaused(NamedTuple):
    """The step loop stands still until it is told to step or to resume."""

    time: float


class EngineResumed(NamedTuple):
    """The step loop runs again."""

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
    | TokensSampled
    | TokenLogprobs
    | StepDone
    | EnginePaused
    | EngineResumed
)
KINDS: dict[str, Any] = {kind.__name__: kind for kind in Event.__args__}


class EventFormatError(VllmNbError):
    """Events that cannot be read: damaged, or written by a newer version of this package."""


class Batch(NamedTuple):
    """A piece of the log: events number offset, offset + 1, and so on.

    snapshot: the engine's state before these events, where the reader cannot know it: at the beginning, and when `lost`
    events before `offset` are not to be had any more. texts: token ids not seen in an earlier batch, for the eye.
    """

    offset: int
    events: list[Event]
    lost: int = 0
    snapshot: dict[str, Any] | None = None
    texts: dict[int, str] = {}  # noqa: RUF012 never changed


def dump(batch: Batch) -> str:
    """One line of JSON, without its end."""
    body: dict[str, Any] = {"version": VERSION, "offset": batch.offset}
    if batch.lost:
        body["lost"] = batch.lost
    if batch.snapshot is not None:
        body["snapshot"] = batch.snapshot
    if batch.texts:
        body["texts"] = batch.texts
    body["events"] = [[type(event).__name__, *event] for event in batch.events]
    return json.dumps(body, separators=(",", ":"))


def parse(line: str | bytes) -> Batch:
    """The batch in a line of JSON. Raises EventFormatError."""
    try:
        return from_wire(json.loads(line))
    except ValueError as error:
        raise EventFormatError(f"the events are damaged: not JSON ({error})") from None


def from_wire(body: Any) -> Batch:
    """The batch in decoded JSON. Raises EventFormatError."""
    check_version(body)
    try:
        events = [KINDS[kind]._make(values) for kind, *values in body["events"]]
        texts = {int(token): str(text) for token, text in body.get("texts", {}).items()}
        return Batch(int(body["offset"]), events, int(body.get("lost", 0)), body.get("snapshot"), texts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EventFormatError(f"the events are damaged: {type(error).__name__}: {error}") from None


def check_version(body: Any) -> None:
    """Raises EventFormatError unless `body` is an object of a version that is understood here."""
    version = body.get("version") if isinstance(body, dict) else None
    if not isinstance(version, int):
        raise EventFormatError("the events are damaged: there is no version number")
    if version > VERSION:
        raise EventFormatError(
            f"the events are of version {version}, written by a newer vllm_nb; this one reads version {VERSION}: "
            "update it with `pip install --upgrade vllm-nb`"
        )
    if version < VERSION:
        raise EventFormatError(
            f"the events are of version {version}, written by an older vllm_nb; this one reads version {VERSION}: "
            "record them anew, or restart an engine that was started with the older one"
        )
