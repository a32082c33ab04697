"""What the benchmarks share: an engine without prefix cache, prompts of a given length, tables and percentiles."""

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from vllm_nb import progress
from vllm_nb.api import Engine, EngineBuilder, Prompt
from vllm_nb.client.terminal import ProgressBars
from vllm_nb.sampling import SamplingParams

TEXT = "The history of computing began long ago, when people first counted with stones. "


def open_engine(stack: ExitStack, args: argparse.Namespace, **settings: Any) -> Engine:
    """The engine to measure, closed with `stack`; progress on stderr."""
    stack.callback(progress.add_sink(stack.enter_context(ProgressBars())))
    settings |= {"prefix_cache": False, "threads": args.threads, "backend": args.backend, "dtype": args.dtype}
    return stack.enter_context(EngineBuilder(args.model).with_config(**settings).build())


def token_ids(engine: Engine, count: int) -> list[int]:
    """`count` token ids of ordinary English."""
    ids = engine.encode(Prompt(text=TEXT * (1 + count // 12)))
    return ids[-count:]  # without a leading beginning-of-sequence token


def greedy(tokens: int) -> SamplingParams:
    """Exactly `tokens` tokens."""
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99)}


def show(rows: list[dict[str, Any]], as_json: bool, title: str) -> None:
    """Rows with the same keys, as a table or as JSON lines."""
    if as_json:
        for row in rows:
            print(json.dumps(row), flush=True)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for key in rows[0]:
        table.add_column(key.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{v:,.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
