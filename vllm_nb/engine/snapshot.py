"""The engine's whole state between two steps, for a reader who then follows it by events.

Copied on the engine thread, which takes microseconds a request and a millisecond for 100,000 stored blocks; turned into
plain data by whoever asked.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_nb.engine.block_manager import StoredBlock
from vllm_nb.engine.engine import EngineCore
from vllm_nb.engine.sequence import Sequence
from vllm_nb.events import StepDone
from vllm_nb.inspection.info import EngineInfo


@dataclass(frozen=True)
class Snapshot:
    """offset: number of the first event after it. last_step: None when nobody was watching it."""

    info: EngineInfo
    offset: int
    step: int
    paused: bool
    last_step: StepDone | None
    counters: dict[str, int]
    sequences: list[dict[str, Any]]
    stored: dict[int, StoredBlock]
    time: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as inspection.view.EngineView.from_snapshot reads it."""
        return {
            "info": self.info.to_dict(),
            "step": self.step,
            "paused": self.paused,
            "time": self.time,
            "last_step": None if self.last_step is None else list(self.last_step),
            "counters": self.counters,
            "sequences": [each | {"tokens": each["tokens"].tolist()} for each in self.sequences],
            "stored": [[block, *_plain(content)] for block, content in self.stored.items()],
        }


def take(core: EngineCore, paused: bool) -> Snapshot:
    """On the engine thread; from here on the log keeps events for readers."""
    scheduler, blocks = core.scheduler, core.scheduler.blocks
    last = core.last_step
    if last is not None and last.step != core.stats.steps:  # nobody watched the last one
        last = None
    return Snapshot(
        info=core.info,
        offset=core.events.listen().end,
        step=core.stats.steps,
        paused=paused,
        last_step=last,
        counters={
            "preemptions": scheduler.preemptions,
            "evictions": blocks.evictions,
            "prompt_tokens": scheduler.prompt_tokens,
            "cached_tokens": scheduler.cached_tokens,
        },
        sequences=[_sequence(seq) for seq in (*scheduler.running, *scheduler.waiting)],
        stored=blocks.stored(),
        time=time.monotonic(),
    )


def _sequence(seq: Sequence) -> dict[str, Any]:
    return {
        "sequence": seq.arrival,
        "request_id": seq.request_id,
        "choice": seq.index,
        "prompt_len": seq.prompt_len,
        "max_tokens": seq.max_tokens,
        "leader": None if seq.leader is None else seq.leader.arrival,
        "sampling": seq.params.distribution(),
        "priority": seq.params.priority,
        "queued": seq.arrived,
        "status": seq.status.value,
        "tokens": seq.tokens.copy(),
        "computed": seq.num_computed,
        "cached": seq.num_cached,
        "blocks": list(seq.blocks),
        "scheduled": seq.scheduled,
        "first_token": seq.first_token,
    }


def _plain(content: StoredBlock) -> tuple[str, str, list[int]]:
    digest, parent, tokens = content
    return digest.hex(), parent.hex(), np.frombuffer(tokens, np.int32).tolist()
