"""What watching costs: decode throughput while the events are read and encoded as for a client, beside nobody reading.

Pairs of runs on one engine, in turn the one and the other first; the cost is the median over the pairs, beside the
middle half of them. What events cost when nobody reads is too little for such a comparison: it is how often a step asks
whether anybody does, and looks at the clock, times what that takes.
"""

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from statistics import median, quantiles
from timeit import timeit
from typing import Any

from vllm_nb.api import Conversation, Engine, Prompt
from vllm_nb.bench.report import show
from vllm_nb.bench.setup import greedy, open_engine, token_ids
from vllm_nb.engine.engine import EngineCore
from vllm_nb.engine.events import EventLog
from vllm_nb.events import dump

CLOCKS = 4  # times that a step looks at the clock for its StepDone, whether anybody reads or not
_TRIES = 200_000


def run(args: argparse.Namespace) -> int:
    rows = []
    with ExitStack() as stack:
        engine = open_engine(stack, args, max_num_seqs=max(64, *args.batch), prefix_cache=True)  # it tells most
        for size in args.batch:
            ids = token_ids(engine, 32 + size)
            prompts: list[Conversation] = [Prompt(token_ids=ids[i : i + 32]) for i in range(size)]
            engine.generate(greedy(4), prompts)
            pairs = [_pair(engine, prompts, args.output, turn) for turn in range(args.repeats)]
            rows.append(_row(size, pairs) | _unread(engine, prompts, args.output))
    show(rows, args.json, "events read, beside nobody reading")
    return 0


def _pair(engine: Engine, prompts: list[Conversation], tokens: int, turn: int) -> tuple[float, float]:
    """Tokens a second without and with a reader."""
    rates = {}
    for watched in (False, True) if turn % 2 else (True, False):
        with _reader(engine) if watched else _nobody(engine):
            start = time.perf_counter()
            engine.generate(greedy(tokens), prompts)
            rates[watched] = len(prompts) * tokens / (time.perf_counter() - start)
    return rates[False], rates[True]


@contextmanager
def _nobody(engine: Engine) -> Iterator[None]:
    """No reader, and none that might come back."""
    engine.forget_events()
    yield


@contextmanager
def _reader(engine: Engine) -> Iterator[None]:
    """One that reads and encodes what the server would send."""
    ended, began = threading.Event(), threading.Event()

    def read() -> None:
        with closing(engine.events()) as batches:
            for batch in batches:
                dump(batch)
                began.set()
                if ended.is_set():
                    return

    thread = threading.Thread(target=read)
    thread.start()
    began.wait()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Counting(EventLog):
    """Counts how often the engine asks whether to tell."""

    asked = 0

    @property
    def enabled(self) -> bool:
        self.asked += 1
        return False

    @enabled.setter
    def enabled(self, value: bool) -> None:
        pass


def _unread(engine: Engine, prompts: list[Conversation], tokens: int) -> dict[str, Any]:
    """What a step pays for events that nobody reads."""
    engine.forget_events()

    def change(kind: type[EventLog]) -> Callable[[EngineCore], tuple[int, int]]:
        def on_engine_thread(core: EngineCore) -> tuple[int, int]:
            asked = getattr(core.events, "asked", 0)
            core.events.__class__ = kind
            return asked, core.stats.steps

        return on_engine_thread

    _, first = engine._loop.call(change(_Counting))
    start = time.perf_counter()
    engine.generate(greedy(tokens), prompts)
    seconds = time.perf_counter() - start
    asked, last = engine._loop.call(change(EventLog))
    log = EventLog()
    cost = asked / (last - first) * timeit("log.enabled", globals={"log": log}, number=_TRIES) / _TRIES
    cost += CLOCKS * timeit("clock()", globals={"clock": time.monotonic}, number=_TRIES) / _TRIES
    share = 100 * cost * (last - first) / seconds
    return {"unread_us_a_step": round(cost * 1e6, 2), "unread_cost_percent": round(share, 3)}


def _row(size: int, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    costs = [100 * (1 - on / off) for off, on in pairs]
    low, middle, high = quantiles(costs, n=4) if len(costs) > 1 else costs * 3
    return {
        "batch": size,
        "pairs": len(pairs),
        "unread_tokens_per_second": round(median(off for off, _ in pairs), 1),
        "read_tokens_per_second": round(median(on for _, on in pairs), 1),
        "cost_percent": round(middle, 2),
        "middle_half_percent": f"{low:.2f} to {high:.2f}",
    }
