"""An engine of this process, seen from outside: its state, its events, and halting it between two steps."""

import math
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import cached_property
from typing import Any

from vllm_nb.engine.bandwidth import read_rate
from vllm_nb.engine.capacity import Capacity
from vllm_nb.engine.engine import EngineCore
from vllm_nb.engine.loop import EngineLoop
from vllm_nb.engine.memory import MemoryPlan, memory_of
from vllm_nb.engine.snapshot import Snapshot
from vllm_nb.engine.stats import snapshot as counts
from vllm_nb.event_reader import EventReader
from vllm_nb.events import Batch, Event
from vllm_nb.inspection.info import EngineInfo
from vllm_nb.inspection.observed import Observed
from vllm_nb.inspection.view import EngineView
from vllm_nb.text.tokenizer import Tokenizer


class Inside(Observed):
    """What api.Engine shows of itself. Methods may be called from any thread."""

    tokenizer: Tokenizer
    info: EngineInfo  # what does not change: model, sizes, weights
    _loop: EngineLoop
    _capacity: Capacity
    _memory_plan: MemoryPlan

    @property
    def max_model_len(self) -> int:
        """Longest prompt and output together, tokens."""
        return self._capacity.max_model_len

    @property
    def failure(self) -> BaseException | None:
        """What killed the engine, if anything did."""
        return self._loop.failure

    def get_num_cached_tokens(self) -> int:
        """Tokens whose keys and values the prefix cache holds."""
        return self._loop.call(lambda core: core.scheduler.blocks.num_stored) * self._capacity.block_size

    def get_available_kv_tokens(self) -> int:
        """Tokens the KV cache can still take, cached prefixes that may be evicted included."""
        return self._loop.call(lambda core: core.scheduler.blocks.num_free) * self._capacity.block_size

    def stats(self) -> dict[str, Any]:
        """Counts between two steps: queues, KV blocks, steps, preemptions."""
        return self._loop.call(counts) | {"paused": self.paused}

    def memory(self) -> dict[str, Any]:
        """Bytes by what they are for: "predicted" before the model was loaded (engine.memory.MemoryPlan), "measured"
        now."""
        plan = self._memory_plan
        return self._loop.call(lambda core: memory_of(core.runner, plan))

    @cached_property
    def read_rate(self) -> float:
        """Bytes a second that this machine reads from memory, measured when first asked for, between two steps: running
        requests wait a tenth of a second."""
        return self._loop.call(_measure_read_rate)

    def check_integrity(self) -> None:
        """Raises RuntimeError when the scheduler's or the KV cache's books do not add up."""
        self._loop.call(lambda core: core.scheduler.check_integrity())

    def view(self) -> EngineView:
        """The state between two steps: queues, batch, block tables, prefix cache."""
        snapshot = self.snapshot()
        return EngineView.from_snapshot(snapshot.to_dict(), snapshot.offset)

    def snapshot(self) -> Snapshot:
        """The same in the form in which it travels; the event log keeps what follows for a while."""
        return self._loop.snapshot()

    def events(self, offset: int | None = None, *, follow: bool = True) -> Generator[Batch, None, None]:
        return self.event_reader(offset).batches(follow=follow)

    def forget_events(self) -> None:
        """Give up the kept events now, and with them their cost, instead of half a minute after the last reader."""
        self._loop.call(lambda core: core.events.expire(math.inf))

    def event_reader(self, offset: int | None = None) -> EventReader:
        """A reader of the event log that never waits for events."""
        return EventReader(self._loop, self.tokenizer, offset)

    def subscribe(self, subscriber: Callable[[Event], None]) -> Callable[[], None]:
        """Call `subscriber` with each engine event, on the engine thread; returns the function that ends it."""
        return self._loop.call(lambda core: core.events.subscribe(subscriber))

    # Step debugger

    def pause(self) -> None:
        """Stand still between two steps; requests are taken and aborted as ever."""
        self._loop.pause()

    def step(self, count: int = 1) -> int:
        """Make `count` steps and stand still. Returns how many were made: fewer when nothing is left to compute, or
        somebody pauses or resumes meanwhile. Raises ValueError for a count below 1."""
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        return self._loop.step(count)

    def resume(self) -> None:
        """Run on."""
        self._loop.resume()

    @property
    def paused(self) -> bool:
        return self._loop.paused


def _measure_read_rate(core: EngineCore) -> float:
    """Also for those who come later, and for recordings."""
    rate = read_rate(core.runner.device)
    core.info = replace(core.info, read_rate=rate)
    return rate
