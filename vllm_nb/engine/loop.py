"""The engine thread: runs steps, takes commands between them, sends outputs back.

Two queues join it to the rest: commands in (submit, abort, call), outputs out by the channel each request came with.
"""

import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from vllm_nb.engine.engine import EngineCore
from vllm_nb.engine.events import Ring
from vllm_nb.engine.gate import StepGate
from vllm_nb.engine.scheduler import TokenOutput
from vllm_nb.engine.sequence import Sequence
from vllm_nb.engine.snapshot import Snapshot, take
from vllm_nb.errors import EngineDeadError, QueueFullError
from vllm_nb.events import EnginePaused, EngineResumed

log = logging.getLogger(__name__)

IDLE_SECONDS = 1.0  # after which an idle engine checks its books, once


class Channel(Protocol):
    """Where the outputs of some requests go, all of a step in one call, on the engine thread; must not block.

    None means that the engine has died: `EngineLoop.failure` says why.
    """

    def put(self, outputs: list[TokenOutput] | None) -> None: ...


@dataclass(frozen=True)
class _Command:
    """What is done between two steps; or, once there are no more steps, how whoever wanted it is told."""

    run: Callable[[], None]
    refuse: Callable[[], None] = lambda: None


class EngineLoop:
    """Owns `core` from its start to its end. Public methods may be called from any thread."""

    def __init__(self, core: EngineCore, max_queued_requests: int, max_queued_tokens: int | None = None):
        self.failure: BaseException | None = None
        self._core = core
        self._events = core.events
        self._max_queued = max_queued_requests
        self._max_queued_tokens = max_queued_tokens
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._channels: dict[Sequence, Channel] = {}
        self._pending: list[Sequence] = []  # submitted and not yet in the scheduler
        self._lock = threading.Lock()
        self._stopping = False
        self._gate = StepGate()
        self._thread = threading.Thread(target=self._run, name="vllm-nb-engine", daemon=True)
        self._thread.start()

    # From any thread

    def submit(self, sequences: list[Sequence], channel: Channel) -> None:
        """Queue sequences of one request, or of several that come together: all or none. Raises QueueFullError or
        EngineDeadError."""
        with self._lock:
            self.raise_if_dead()
            self._check_room(sequences)
            self._pending += sequences
            self._commands.put(_Command(lambda: self._add(sequences, channel), lambda: channel.put(None)))

    def _check_room(self, sequences: list[Sequence]) -> None:
        """Who finds nobody waiting is taken, however much it is: waiting for room would not help."""
        waiting = [*self._core.scheduler.waiting, *self._pending]
        if not waiting:
            return
        if len(waiting) + len(sequences) > self._max_queued:
            raise QueueFullError(
                f"{len(waiting)} requests are waiting, the limit is {self._max_queued}; try again later"
            )
        if self._max_queued_tokens is not None:
            tokens = _prompt_tokens(waiting)
            if tokens + _prompt_tokens(sequences) > self._max_queued_tokens:
                raise QueueFullError(
                    f"requests with {tokens:,} prompt tokens are waiting, the limit is {self._max_queued_tokens:,}; "
                    "try again later"
                )

    def abort(self, request_id: str, index: int | None = None, reason: str = "abort") -> None:
        """End a request, or one of its sequences, before the next step. Unknown ids are ignored."""
        self._commands.put(_Command(lambda: self._deliver(self._core.scheduler.finish(request_id, index, reason))))

    def call(self, function: Callable[[EngineCore], Any]) -> Any:
        """The result of `function(core)`, run on the engine thread between two steps. Raises what it raises."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function(self._core))
            except BaseException as error:
                future.set_exception(error)

        with self._lock:
            self.raise_if_dead()
            self._commands.put(_Command(run, lambda: future.set_exception(self._death())))
        return future.result()

    def snapshot(self) -> Snapshot:
        """The state between two steps; from here on the event log keeps what follows, for readers."""
        return self.call(lambda core: take(core, self._gate.paused))

    @property
    def ring(self) -> Ring | None:
        """The kept events, while anybody reads them. Raises EngineDeadError."""
        self.raise_if_dead()
        return self._events.ring

    @property
    def paused(self) -> bool:
        return self._gate.paused

    def pause(self) -> None:
        """Stand still until `step` or `resume`; commands are taken as ever. Returns when no step is under way."""
        self.call(lambda core: self._set_paused(True))

    def resume(self) -> None:
        """Run on."""
        self.call(lambda core: self._set_paused(False))

    def step(self, count: int) -> int:
        """Make `count` steps and stand still. Returns how many were made: fewer when nothing is left to compute, or
        somebody pauses or resumes meanwhile."""

        def begin(core: EngineCore) -> Future[int]:
            core.events.listen()  # so that a snapshot knows what the last step was
            if not self._gate.paused:
                self._set_paused(True)
            return self._gate.let_through(count)

        return self.call(begin).result()

    def close(self) -> None:
        """Stop after the current step; requests that still run end with "abort". Safe to call twice."""
        with self._lock:
            self._stopping = True
            self._commands.put(_Command(lambda: None))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def raise_if_dead(self) -> None:
        if self.failure is not None or self._stopping:
            raise self._death() from self.failure

    def _death(self) -> EngineDeadError:
        if self.failure is not None:
            return EngineDeadError(f"the engine has failed: {self.failure!r}; build a new one")
        return EngineDeadError("the engine is closed; build a new one")

    # On the engine thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take_commands()
                if self._may_step() and not self._stopping:
                    self._deliver(self._core.step())
                    if self._gate.paused:  # single steps: each is seen whole
                        self._deliver(self._core.settle())
                    self._gate.passed()
                self._gate.settle(self._core.has_work)
            for seq in [*self._core.scheduler.running, *self._core.scheduler.waiting]:
                self._deliver(self._core.scheduler.finish(seq.request_id, seq.index, "abort"))
        except BaseException as error:  # a bug of ours: nobody may wait for ever
            log.exception("the engine thread has failed")
            self.failure = error
        finally:
            self._end()

    def _take_commands(self) -> None:
        """All commands that wait; with nothing to do, the next one, however long it takes to come."""
        if not self._may_step():
            try:
                self._commands.get(timeout=IDLE_SECONDS).run()
            except queue.Empty:
                self._core.scheduler.check_integrity()
                self._commands.get().run()
        while not self._commands.empty():
            self._commands.get().run()

    def _may_step(self) -> bool:
        return self._core.has_work and self._gate.is_open

    def _set_paused(self, paused: bool) -> None:
        self._gate.settle(has_work=False)
        self._deliver(self._core.settle())
        if paused != self._gate.paused and self._events.enabled:
            now = time.monotonic()
            self._events.emit(EnginePaused(now) if paused else EngineResumed(now))
        self._gate.paused = paused

    def _add(self, sequences: list[Sequence], channel: Channel) -> None:
        with self._lock:
            del self._pending[: len(sequences)]  # commands keep their order
        for seq in sequences:
            self._channels[seq] = channel
            self._core.scheduler.add(seq)

    def _deliver(self, outputs: list[TokenOutput]) -> None:
        by_channel: defaultdict[Channel, list[TokenOutput]] = defaultdict(list)
        for output in outputs:
            seq = output.seq
            by_channel[self._channels[seq]].append(output)
            if output.finish_reason is not None:
                del self._channels[seq]
        for channel, items in by_channel.items():
            channel.put(items)

    def _end(self) -> None:
        """Tell everybody who waits: requests, queued commands, callers. `core` may be broken and is not used."""
        with self._lock:
            self._stopping = True
        while not self._commands.empty():
            self._commands.get().refuse()
        self._gate.settle(has_work=False)
        for channel in set(self._channels.values()):
            channel.put(None)
        self._channels.clear()
        del self._core  # weights and cache: whoever still holds the engine does not hold them


def _prompt_tokens(sequences: list[Sequence]) -> int:
    """Of requests: the answers to one prompt share it."""
    return sum(seq.prompt_len for seq in sequences if seq.leader is None)
