"""How long one waits: for the first token and between tokens, by the number of requests at once; and how much slower
decoding gets as the context grows."""

import argparse
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from vllm_nb.api import Engine, Prompt
from vllm_nb.bench.report import percentiles, show
from vllm_nb.bench.setup import greedy, open_engine, token_ids
from vllm_nb.events import Event, StepDone
from vllm_nb.text.output_text import OutputText

PHASES = ("schedule", "prepare", "forward", "sample", "update")


def run(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        engine = open_engine(stack, args, max_num_seqs=max(64, *args.batch))
        _measure(engine, 1, 16, 4)  # warm-up
        if args.context:
            show(_by_context(engine, args), args.json, "one request, milliseconds between tokens")
            return 0
        measured = [_repeat(engine, size, args) for size in args.batch]
        show([row for row, _ in measured], args.json, "latency, milliseconds")
        if args.phases:
            show([phases for _, phases in measured], args.json, "a decode step, milliseconds (median)")
    return 0


def _repeat(engine: Engine, size: int, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    steps: list[StepDone] = []

    def keep_decode_steps(event: Event) -> None:
        if isinstance(event, StepDone) and event.num_tokens == [1] * size:
            steps.append(event)

    unsubscribe = engine.subscribe(keep_decode_steps) if args.phases else (lambda: None)
    runs = [_measure(engine, size, args.input, args.output) for _ in range(args.repeats)]
    unsubscribe()
    first = [seconds for ttft, _, _ in runs for seconds in ttft]
    between = [seconds for _, gaps, _ in runs for seconds in gaps]
    row: dict[str, Any] = {"batch": size}
    for name, values in (("ttft", first), ("between", between)):
        row |= {f"{name}_{p}": round(1000 * seconds, 3) for p, seconds in percentiles(values).items()}
    row["tokens_per_second"] = round(size / float(np.mean(between)), 1)
    return row, _phases(engine, size, steps, runs[-1][2])


def _by_context(engine: Engine, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians over rounds in which each context has its turn, so that what else the machine does meets all alike.

    falls_percent: by how much tokens a second are fewer than in the first row.
    """
    seconds: dict[int, list[float]] = {context: [] for context in args.context}
    for _ in range(args.repeats):
        for context, found in seconds.items():
            found += _measure(engine, 1, context, args.output)[1]
    rates = {context: 1 / float(np.median(found)) for context, found in seconds.items()}
    return [
        {
            "context": context,
            "between_p50": round(1000 / rate, 3),
            "between_least": round(1000 * min(seconds[context]), 3),
            "tokens_per_second": round(rate, 1),
            "falls_percent": round(100 * (1 - rate / rates[args.context[0]]), 1),
        }
        for context, rate in rates.items()
    ]


def _measure(engine: Engine, size: int, prompt: int, tokens: int) -> tuple[list[float], list[float], list[int]]:
    """Times to first token, times between tokens (seconds), and the ids of one answer."""
    ids = token_ids(engine, prompt + size)
    start = time.perf_counter()
    streams = [engine.generate_stream(greedy(tokens), Prompt(token_ids=ids[i : i + prompt])) for i in range(size)]
    outputs = []
    for stream in streams:
        for _ in stream:
            continue
        outputs.append(stream.output)
    elapsed = time.perf_counter() - start
    assert all(len(output.token_ids) == tokens for output in outputs), f"lost tokens in {elapsed:.1f} s"
    first = [output.timings.ttft or 0.0 for output in outputs]
    gaps = [1 / rate for output in outputs if (rate := output.timings.decode_rate(tokens))]
    return first, gaps, outputs[0].token_ids


def _phases(engine: Engine, size: int, steps: list[StepDone], ids: list[int]) -> dict[str, Any]:
    """Medians over decode steps of the full batch; overhead is all but the forward pass."""
    if not steps:
        return {"batch": size}
    row = {name: 1000 * float(np.median([getattr(step, name) for step in steps])) for name in PHASES}
    row["detokenise"] = 1000 * size * _detokenise_seconds(engine, ids)
    overhead = sum(row.values()) - row["forward"]
    return {"batch": size, **{k: round(v, 4) for k, v in row.items()}, "overhead": round(overhead, 4)}


def _detokenise_seconds(engine: Engine, ids: list[int]) -> float:
    """Seconds a token."""
    text = OutputText(engine.tokenizer, (), 0)
    start = time.perf_counter()
    for token in ids:
        text.push([token])
    return (time.perf_counter() - start) / len(ids)
