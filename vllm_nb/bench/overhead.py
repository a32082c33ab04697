"""`vllm-nb bench overhead`: the same requests to an engine in this process and to a server, in turns, in one run.

The difference is all that serving costs on this machine: HTTP, server-sent events, and the clients too.
"""

import argparse
import asyncio
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import numpy as np

from vllm_nb.api import Engine, Prompt
from vllm_nb.bench.load import Workload, run_load
from vllm_nb.bench.report import show
from vllm_nb.bench.serve import first_model, summary
from vllm_nb.bench.setup import greedy, open_engine
from vllm_nb.bench.sse import Client
from vllm_nb.errors import VllmNbError


def run(args: argparse.Namespace) -> int:
    workload = Workload("", tuple(args.input), tuple(args.output), args.seed)
    alone, served = [], []
    with ExitStack() as stack:
        url = stack.enter_context(_server(args))
        engine = open_engine(stack, args, max_num_seqs=args.concurrency, max_queued_requests=max(1024, args.requests))
        for _ in range(args.rounds):
            alone.append(_alone(engine, workload, args.requests))
            served.append(asyncio.run(_served(url, workload, args)))
    rates = [round(float(np.median([row["output_tokens_per_second"] for row in rows])), 1) for rows in (alone, served)]
    rows = [{"what": "engine alone"} | alone[-1], {"what": "over HTTP"} | served[-1]]
    for row, rate in zip(rows, rates, strict=True):
        row |= {"output_tokens_per_second": rate, "cost_percent": round(100 * (1 - rate / rates[0]), 1)}
    show(rows, args.json, f"what serving costs, {args.concurrency} clients; medians of {args.rounds} rounds")
    return int(any(row.get("errors") or row.get("lost_tokens") for row in served))


def _alone(engine: Engine, workload: Workload, count: int) -> dict[str, Any]:
    asked = [(json.loads(body)["prompt"], tokens) for body, tokens in itertools.islice(workload.requests(), count)]
    start = time.perf_counter()
    streams = [engine.generate_stream(greedy(tokens), Prompt(text=text)) for text, tokens in asked]
    for stream in streams:
        for _ in stream:
            continue
    seconds = time.perf_counter() - start
    output = sum(stream.output.usage.completion_tokens for stream in streams)
    return {"requests": count, "output_tokens": output, "output_tokens_per_second": round(output / seconds, 1)}


async def _served(url: str, workload: Workload, args: argparse.Namespace) -> dict[str, Any]:
    with closing(Client(url)) as client:
        asked = Workload(await first_model(client), workload.input, workload.output, workload.seed)
        row = summary(*await run_load(client, asked, concurrency=args.concurrency, requests=args.requests))
    kept = ("requests", "output_tokens", "output_tokens_per_second", "errors", "lost_tokens", "itl_p50", "itl_p99")
    return {name: row[name] for name in (*kept, "itl_p99_by_p50")}


@contextmanager
def _server(args: argparse.Namespace) -> Iterator[str]:
    """The address of a server of the same engine, in a process of its own."""
    command = [sys.executable, "-m", "vllm_nb.cli", "serve", args.model, "--port", "0", "--no-prefix-cache"]
    command += ["--max-num-seqs", str(args.concurrency), "--backend", args.backend, "--dtype", args.dtype]
    command += ["--threads", str(args.threads)] if args.threads else []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if address := re.search(r"is served at (http://\S+)/v1", line):
                    yield address[1]
                    return
            raise VllmNbError(f"the server has ended: {''.join(said[-3:]).strip()}")
        finally:
            process.terminate()
