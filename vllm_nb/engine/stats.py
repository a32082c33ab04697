"""What the engine counts, whoever watches: a few plain numbers, brought up to date once a step.

Other threads may read them at any time; what they see is at most a step old.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vllm_nb.engine.scheduler import TokenOutput

if TYPE_CHECKING:
    from vllm_nb.engine.engine import EngineCore

# Upper bounds of Prometheus' buckets, those of vLLM.
INTERVAL_BOUNDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
STEP_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Histogram:
    """Values counted by bucket. counts[i]: those up to bounds[i] and above the bound before it; one more at the end for
    the rest."""

    def __init__(self, bounds: Sequence[float]):
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class EngineStats:
    """Counts since the engine began. token_intervals: seconds between two tokens of a sequence. step_tokens: tokens
    computed by a step."""

    def __init__(self) -> None:
        self.steps = 0
        self.generated_tokens = 0
        self.token_intervals = Histogram(INTERVAL_BOUNDS)
        self.step_tokens = Histogram(STEP_BOUNDS)
        self._last_step = 0.0

    def count_step(self, num_tokens: Sequence[int], outputs: Sequence[TokenOutput], now: float) -> None:
        """After a step that computed `num_tokens`, at `now` on the monotonic clock. Whoever got a token that is not its
        first had one in the step before too."""
        self.steps += 1
        self.generated_tokens += sum(output.token is not None for output in outputs)
        following = sum(output.token is not None and output.seq.output_len > 1 for output in outputs)
        if following:
            self.token_intervals.add(now - self._last_step, following)
        self.step_tokens.add(sum(num_tokens))
        self._last_step = now


def snapshot(core: "EngineCore") -> dict[str, Any]:
    """Queues, KV blocks and counts as they are now; to be called between two steps."""
    scheduler, blocks = core.scheduler, core.scheduler.blocks
    return {
        "running": len(scheduler.running),
        "waiting": len(scheduler.waiting),
        "steps": core.stats.steps,
        "preemptions": scheduler.preemptions,
        "kv_blocks": {
            "total": blocks.num_blocks,
            "free": blocks.num_free,
            "used": blocks.num_blocks - blocks.num_free,
            "cached": blocks.num_stored,
            "evictions": blocks.evictions,
            "block_size": blocks.block_size,
        },
    }
