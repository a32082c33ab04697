"""How much gets done: many requests of mixed lengths, all queued at once."""

import argparse
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from vllm_nb.api import Prompt
from vllm_nb.bench.report import percentiles, show
from vllm_nb.bench.setup import greedy, open_engine
from vllm_nb.outputs import GenerationOutput


def run(args: argparse.Namespace) -> int:
    rng = np.random.default_rng(args.seed)
    inputs, outputs = (rng.integers(low, high + 1, args.requests) for low, high in (args.input, args.output))
    with ExitStack() as stack:
        engine = open_engine(stack, args, max_queued_requests=max(1024, args.requests))
        prompts = [Prompt(token_ids=rng.integers(100, 5000, n).tolist()) for n in inputs]
        engine.generate(greedy(2), prompts[0])
        start = time.perf_counter()
        streams = [engine.generate_stream(greedy(int(n)), p) for n, p in zip(outputs, prompts, strict=True)]
        for stream in streams:
            for _ in stream:
                continue
        seconds = time.perf_counter() - start
        show([_row([stream.output for stream in streams], seconds)], args.json, "throughput")
    return 0


def _row(outputs: list[GenerationOutput], seconds: float) -> dict[str, Any]:
    prompt_tokens = sum(output.usage.prompt_tokens for output in outputs)
    output_tokens = sum(output.usage.completion_tokens for output in outputs)
    row: dict[str, Any] = {
        "requests": len(outputs),
        "seconds": round(seconds, 2),
        "input_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "output_tokens_per_second": round(output_tokens / seconds, 1),
        "total_tokens_per_second": round((prompt_tokens + output_tokens) / seconds, 1),
    }
    first = [output.timings.ttft or 0.0 for output in outputs]
    rates = [output.timings.decode_rate(output.usage.completion_tokens) for output in outputs]
    each = [1 / rate for rate in rates if rate]
    for name, values in (("ttft_ms", first), ("per_token_ms", each)):
        row |= {f"{name}_{p}": round(1000 * value, 2) for p, value in percentiles(values).items()}
    return row
