"""What watching costs: decode throughput while the events are read and encoded as for a client, beside nobody reading.

Pairs of runs on one engine, in turn the one and the other first; the cost is the median over the pairs.
"""

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from statistics import median
from typing import Any

from vllm_nb.api import Conversation, Engine, Prompt
from vllm_nb.bench.report import show
from vllm_nb.bench.setup import greedy, open_engine, token_ids
from vllm_nb.events import dump


def run(args: argparse.Namespace) -> int:
    rows = []
    with ExitStack() as stack:
        engine = open_engine(stack, args, max_num_seqs=max(64, *args.batch))
        for size in args.batch:
            ids = token_ids(engine, 32 + size)
            prompts: list[Conversation] = [Prompt(token_ids=ids[i : i + 32]) for i in range(size)]
            engine.generate(greedy(4), prompts)
            rows.append(_row(size, [_pair(engine, prompts, args.output, turn) for turn in range(args.repeats)]))
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


def _row(size: int, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    return {
        "batch": size,
        "pairs": len(pairs),
        "unread_tokens_per_second": round(median(off for off, _ in pairs), 1),
        "read_tokens_per_second": round(median(on for _, on in pairs), 1),
        "cost_percent": round(median(100 * (1 - on / off) for off, on in pairs), 2),
    }
