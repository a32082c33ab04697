"""The engine as a reader of its events knows it: queues, sequences, block tables, prefix cache.

Start from a snapshot, `apply` the events that follow it, and the view equals the engine's own books after each step;
the tests hold it to that. Only the standard library is needed.
"""

from array import array
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from vllm_nb import events
from vllm_nb.events import Event, StepDone, TokenLogprobs
from vllm_nb.inspection.info import EngineInfo

KEPT_FINISHED = 256  # finished sequences a view remembers
NEVER = -1  # step in which a block was written, when that was before anybody watched


class StoredBlock(NamedTuple):
    """A block of the prefix cache. parent: hash of the block before it, "" for the first of a prompt."""

    hash: str
    parent: str
    token_ids: list[int]


@dataclass
class SequenceView:
    """One sequence. `tokens[:computed]` have their keys and values in the cache; times as in events."""

    sequence: int
    request_id: str
    choice: int
    prompt_len: int
    max_tokens: int
    leader: int | None
    sampling: dict[str, float]
    priority: int  # whose is lower runs earlier
    queued: float
    tokens: list[int]
    status: str = "waiting"  # waiting, running, finished
    computed: int = 0
    cached: int = 0  # prompt tokens found in the prefix cache at the first admission
    blocks: list[int] = field(default_factory=list)  # block table: logical block -> physical block
    scheduled: float | None = None
    first_token: float | None = None
    # What the engine does not keep, so that a snapshot lacks it:
    finished: float | None = field(default=None, compare=False)
    finish_reason: str | None = field(default=None, compare=False)
    preemptions: int = field(default=0, compare=False)
    last_blocks: list[int] = field(default_factory=list, compare=False)  # the table it gave up last
    last_computed: int = field(default=0, compare=False)  # and what was computed then
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict, compare=False)  # by position, where asked for

    @property
    def output(self) -> list[int]:
        return self.tokens[self.prompt_len :]

    def copy(self) -> "SequenceView":
        copied = SequenceView.__new__(SequenceView)
        copied.__dict__.update(self.__dict__)
        copied.tokens, copied.blocks, copied.logprobs = self.tokens.copy(), self.blocks.copy(), self.logprobs.copy()
        return copied


@dataclass
class Counters:
    """Since the engine started."""

    preemptions: int = 0
    evictions: int = 0
    prompt_tokens: int = 0  # of admitted requests
    cached_tokens: int = 0  # of those, found in the prefix cache


class EngineView:
    """The state after the events before number `offset`. Not thread-safe.

    running, waiting: sequence numbers in order of arrival. finished: the last KEPT_FINISHED. references[b]: how many
    sequences hold block b, 0 is free. stored: the prefix cache by block, block_of: by hash. written[b]: the step that
    wrote to block b last. owner[b]: its holder, of several the first, or who held it last. sharers: all holders of the
    blocks that have several. changed: blocks whose picture has changed since the owner of the view emptied the set.
    """

    def __init__(self, info: EngineInfo):
        self.info = info
        self.offset = 0
        self.step = 0
        self.time = 0.0
        self.paused = False
        self.last_step: StepDone | None = None
        self.counters = Counters()
        self.sequences: dict[int, SequenceView] = {}  # running, waiting and finished
        self.running: list[int] = []
        self.waiting: list[int] = []
        self.finished: list[int] = []
        self.references = array("i", bytes(4 * info.num_blocks))
        self.written = array("i", [NEVER]) * info.num_blocks
        self.owner = array("i", [NEVER]) * info.num_blocks
        self.sharers: dict[int, list[int]] = {}
        self.num_free = info.num_blocks
        self.num_cached_free = 0  # of them, those in the prefix cache
        self.stored: dict[int, StoredBlock] = {}
        self.block_of: dict[str, int] = {}
        self.changed: set[int] = set()
        self._fresh: list[int] = []  # blocks that the last step wrote to
        self._leading: list[int] = []  # as of the last step
        self._new: set[int] = set()  # queued since the last step
        self._ended: set[int] = set()  # finished since then

    @classmethod
    def from_snapshot(cls, snapshot: dict[str, Any], offset: int = 0) -> Self:
        """From what `/inspect/state` and the first batch of events hold. Raises EventFormatError."""
        try:
            view = cls(EngineInfo.from_dict(snapshot["info"]))
            view.offset = offset
            view.step, view.time, view.paused = snapshot["step"], snapshot["time"], snapshot["paused"]
            last = snapshot["last_step"]
            view.last_step = None if last is None else StepDone._make(last)
            view.counters = Counters(**snapshot["counters"])
            for known in snapshot["sequences"]:
                view._enter(SequenceView(**known))
            for block, *content in snapshot["stored"]:
                view._store(block, StoredBlock._make(content))
            view._leading = view.waiting[: view.last_step.leading] if view.last_step else []
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise events.EventFormatError(f"the snapshot is damaged: {type(error).__name__}: {error}") from None
        view.changed = set(range(view.info.num_blocks))
        return view

    def copy(self) -> "EngineView":
        """The same state, to be changed independently; all blocks count as changed."""
        view = EngineView.__new__(EngineView)
        view.__dict__.update(self.__dict__)
        view.counters = replace(self.counters)
        view.sequences = {  # what has ended for good is never changed, and there are many of those
            number: seq if seq.status == "finished" and number not in self._ended else seq.copy()
            for number, seq in self.sequences.items()
        }
        view._leading, view._new, view._ended = self._leading.copy(), self._new.copy(), self._ended.copy()
        view.running, view.waiting, view.finished = self.running.copy(), self.waiting.copy(), self.finished.copy()
        view.references, view.written, view.owner = self.references[:], self.written[:], self.owner[:]
        view.sharers = {block: holders.copy() for block, holders in self.sharers.items()}
        view.stored, view.block_of = self.stored.copy(), self.block_of.copy()
        view.changed = set(range(self.info.num_blocks))
        return view

    # Questions

    @property
    def batch(self) -> dict[int, int]:
        """Tokens computed in the last step, by sequence."""
        last = self.last_step
        return {} if last is None else dict(zip(last.sequences, last.num_tokens, strict=True))

    @property
    def num_used(self) -> int:
        return self.info.num_blocks - self.num_free

    def wait_reason(self, sequence: int) -> str:
        """Why a sequence waits: budget, rows, blocks; leader (a sibling prefills for it); new (no step since)."""
        if sequence in self._leading:
            return "leader"
        return "new" if self.last_step is None or sequence in self._new else self.last_step.wait_reason

    def tokens_of(self, block: int) -> list[int]:
        """The token ids whose keys and values a block holds, as far as known: up to block_size of them."""
        if block in self.stored:
            return self.stored[block].token_ids
        size = self.info.block_size
        for number in self.holders_of(block):
            seq = self.sequences[number]
            start = seq.blocks.index(block) * size
            return seq.tokens[start : min(start + size, seq.computed)]
        return []

    def holders_of(self, block: int) -> list[int]:
        """The sequences whose block tables have the block."""
        return self.sharers.get(block) or ([self.owner[block]] if self.references[block] else [])

    def chain_of(self, block: int) -> list[str]:
        """Hashes of a stored block and its predecessors, itself first, as far as they are still in the cache."""
        chain = []
        content = self.stored.get(block)
        while content is not None:
            chain.append(content.hash)
            content = self.stored.get(self.block_of.get(content.parent, -1))
        return chain

    def books(self) -> dict[str, Any]:
        """Everything that the engine's own books say too, to compare views by."""
        live = {number: self.sequences[number] for number in (*self.running, *self.waiting)}
        return {
            "step": self.step,
            "paused": self.paused,
            "running": self.running,
            "waiting": self.waiting,
            "sequences": live,
            "references": self.references.tolist(),
            "free": self.num_free,
            "cached_free": self.num_cached_free,
            "holders": {block: self.holders_of(block) for block, held in enumerate(self.references) if held},
            "stored": self.stored,
            "counters": self.counters,
        }

    # Changes

    def apply(self, event: Event) -> None:
        """Take over what happened. Raises EventFormatError for an event that cannot follow on this state."""
        try:
            _APPLY[type(event)](self, event)
        except (KeyError, IndexError, ValueError) as error:
            raise events.EventFormatError(
                f"event {self.offset} ({type(event).__name__}) does not follow on the ones before it: {error!r}"
            ) from None
        self.offset += 1

    def _enter(self, seq: SequenceView) -> None:
        self.sequences[seq.sequence] = seq
        insort(self.running if seq.status == "running" else self.waiting, seq.sequence, key=self._order)
        self._hold(seq.sequence, seq.blocks)

    def _order(self, sequence: int) -> tuple[int, int]:
        """As the scheduler's queues have it."""
        return self.sequences[sequence].priority, sequence

    def _hold(self, sequence: int, blocks: list[int]) -> None:
        for block in blocks:
            if self.references[block] == 0:
                self.num_free -= 1
                self.num_cached_free -= block in self.stored
                self.owner[block] = sequence
            else:
                holders = self.sharers.setdefault(block, [self.owner[block]])
                insort(holders, sequence)
                self.owner[block] = holders[0]
            self.references[block] += 1
        self.changed.update(blocks)

    def _release(self, sequence: int, block: int) -> None:
        self.references[block] -= 1
        if self.references[block] == 0:
            self.num_free += 1
            self.num_cached_free += block in self.stored
            return
        holders = self.sharers[block]
        holders.remove(sequence)
        self.owner[block] = holders[0]
        if len(holders) == 1:
            del self.sharers[block]

    def _store(self, block: int, content: StoredBlock) -> None:
        self.num_cached_free += self.references[block] == 0 and block not in self.stored
        self.stored[block] = content
        self.block_of[content.hash] = block
        self.changed.add(block)

    def _queued(self, event: events.RequestQueued) -> None:
        number, request_id, choice, prompt, max_tokens, leader, sampling, priority, time = event
        known = number, request_id, choice, len(prompt), max_tokens, leader, sampling, priority, time
        self._enter(SequenceView(*known, tokens=prompt.copy()))
        self._new.add(number)
        self.time = max(self.time, time)

    def _scheduled(self, event: events.RequestScheduled) -> None:
        seq = self.sequences[event.sequence]
        self.waiting.remove(event.sequence)
        insort(self.running, event.sequence, key=self._order)
        seq.status, seq.computed, self.time = "running", event.cached_tokens, event.time
        if seq.scheduled is None:
            seq.scheduled, seq.cached = event.time, min(event.cached_tokens, seq.prompt_len)
            self.counters.prompt_tokens += seq.prompt_len
            self.counters.cached_tokens += seq.cached

    def _preempted(self, event: events.RequestPreempted) -> None:
        seq = self.sequences[event.sequence]
        self.running.remove(event.sequence)
        insort(self.waiting, event.sequence, key=self._order)
        seq.status, self.time = "waiting", event.time
        seq.preemptions += 1
        self.counters.preemptions += 1

    def _finished(self, event: events.RequestFinished) -> None:
        seq = self.sequences[event.sequence]
        (self.running if seq.status == "running" else self.waiting).remove(event.sequence)
        seq.status, seq.finish_reason, seq.finished = "finished", event.reason, event.time
        self.time = event.time
        self.finished.append(event.sequence)
        self._ended.add(event.sequence)
        if len(self.finished) > KEPT_FINISHED:
            del self.sequences[self.finished.pop(0)]

    def _allocated(self, event: events.BlocksAllocated | events.BlocksReused) -> None:
        self._hold(event.sequence, event.blocks)
        self.sequences[event.sequence].blocks += event.blocks

    def _freed(self, event: events.BlocksFreed) -> None:
        seq = self.sequences[event.sequence]
        for block in event.blocks:
            self._release(event.sequence, block)
        self.changed.update(event.blocks)
        seq.last_blocks, seq.last_computed = seq.blocks, seq.computed
        seq.blocks, seq.computed = [], 0

    def _block_stored(self, event: events.BlockStored) -> None:
        block, digest, parent, token_ids = event
        self._store(block, StoredBlock(digest, parent, token_ids))

    def _evicted(self, event: events.BlockEvicted) -> None:
        self.num_cached_free -= self.references[event.block] == 0
        del self.stored[event.block]
        del self.block_of[event.hash]
        self.counters.evictions += 1
        self.changed.add(event.block)

    def _sampled(self, event: events.TokensSampled) -> None:
        for number, token in zip(event.sequences, event.token_ids, strict=True):
            seq = self.sequences[number]
            seq.tokens.append(token)
            if seq.first_token is None:
                seq.first_token = event.time
        self.time = event.time

    def _logprobs(self, event: TokenLogprobs) -> None:
        if (seq := self.sequences.get(event.sequence)) is not None:
            seq.logprobs[event.position] = event

    def _step_done(self, event: StepDone) -> None:
        self.changed.update(self._fresh)  # what was just written is so no longer
        self.step, self.time, self.last_step = event.step, event.time, event
        self._leading, self._new, self._ended = self.waiting[: event.leading], set(), set()
        fresh: list[int] = []
        size, sequences = self.info.block_size, self.sequences
        for number, count in zip(event.sequences, event.num_tokens, strict=True):
            seq = sequences.get(number)
            if seq is None:  # long finished: more ended in this step than are remembered
                continue
            if seq.status == "running":
                seq.computed = end = seq.computed + count
                blocks = seq.blocks
            else:
                seq.last_computed = end = seq.last_computed + count
                blocks = seq.last_blocks
            if count == 1:
                fresh.append(blocks[(end - 1) // size])
            else:
                fresh += blocks[(end - count) // size : (end - 1) // size + 1]
        for block in fresh:
            self.written[block] = event.step
        self.changed.update(fresh)
        self._fresh = fresh

    def _paused(self, event: events.EnginePaused) -> None:
        self.paused, self.time = True, event.time

    def _resumed(self, event: events.EngineResumed) -> None:
        self.paused, self.time = False, event.time


_APPLY: dict[type, Callable[[EngineView, Any], None]] = {
    events.RequestQueued: EngineView._queued,
    events.RequestScheduled: EngineView._scheduled,
    events.RequestPreempted: EngineView._preempted,
    events.RequestFinished: EngineView._finished,
    events.BlocksAllocated: EngineView._allocated,
    events.BlocksReused: EngineView._allocated,
    events.BlocksFreed: EngineView._freed,
    events.BlockStored: EngineView._block_stored,
    events.BlockEvicted: EngineView._evicted,
    events.TokensSampled: EngineView._sampled,
    events.TokenLogprobs: EngineView._logprobs,
    StepDone: EngineView._step_done,
    events.EnginePaused: EngineView._paused,
    events.EngineResumed: EngineView._resumed,
}
