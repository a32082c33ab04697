"""Where a step's time goes by kernel, and how near it comes to what this machine allows.

A captured step is replayed as it is: no scheduling, no sampling. Beside its time stand two floors:

memory      all weights and the cached context read once, at the bandwidth of summing a large array
operations  two for each weight and row, at the rate of the variant's own instructions on registers alone

A step cannot be faster than both; the first binds decoding alone, the second long prompts.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_nb import progress
from vllm_nb.bench.machine import Machine, measure
from vllm_nb.bench.report import show
from vllm_nb.client.terminal import ProgressBars
from vllm_nb.config import EngineConfig
from vllm_nb.engine.build import build_core
from vllm_nb.engine.engine import EngineCore
from vllm_nb.engine.sequence import Sequence
from vllm_nb.sampling import NEUTRAL_DEFAULTS, SamplingParams
from vllm_nb.weights.checkpoint import open_checkpoint
from vllm_nb.weights.hub import ModelRepo, resolve


@dataclass(frozen=True)
class Step:
    """A step as it lies in the runner's buffers; context: cached tokens that it reads, its own included."""

    name: str
    tokens: int
    seqs: int
    context: int


def run(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        stack.callback(progress.add_sink(stack.enter_context(ProgressBars())))
        core, weight_bytes = _load(args)
        machine = measure()
        rows, shares = [], {}
        for size, tokens, decoding in [*((n, args.context, True) for n in args.rows), (1, args.prefill, False)]:
            step = _take_step(core, size, tokens, decoding)
            rows.append(_time(core, step, machine, weight_bytes, args.repeats))
            shares[step.name] = core.runner.graph.profile(step.tokens, step.seqs, step.seqs, args.repeats)
        show([machine.row()], args.json, "this machine, measured now")
        show(rows, args.json, "a captured step (median), and its floors")
        show(_share_rows(shares), args.json, "share of the step by kernel, percent")
    return 0


def _load(args: argparse.Namespace) -> tuple[EngineCore, int]:
    """The core, and the bytes of weights that a step reads."""
    budget = max(512, args.prefill, *args.rows)
    # the first sequences decode while the last are still being prefilled
    length = max(args.context + max(args.rows) * args.context // 256 + 64, args.prefill + 1)
    config = EngineConfig(
        device="cpu",
        backend="cpu",
        dtype=args.dtype,
        threads=args.threads,
        max_model_len=length,
        max_num_seqs=max(args.rows),
        max_num_batched_tokens=budget,
        prefill_chunk=budget,
        num_kv_blocks=(max(args.rows) + 1) * (length // 16 + 1),
        prefix_cache=False,
    )
    with closing(open_checkpoint(resolve(ModelRepo.parse(args.model)))) as checkpoint:
        core = build_core(checkpoint, config)
    return core, core.runner.model.step_bytes


def _take_step(core: EngineCore, size: int, tokens: int, decoding: bool) -> Step:
    """Run `size` sequences up to a step of the kind to measure, and leave its input in the buffers."""
    rng = np.random.default_rng(0)
    vocabulary = core.runner.model.config.vocab_size
    sequences = [_sequence(rng.integers(0, vocabulary, tokens, dtype=np.int32), i) for i in range(size)]
    for seq in sequences:
        core.scheduler.add(seq)
    while decoding and core.scheduler.has_work and not all(seq.is_decoding for seq in sequences):
        core.step()
    core.step()
    assert len(core.scheduler.running) == size, "a step failed; the log says why"
    context = int(core.runner.buffers.arrays["seq_lens"][:size].sum())
    for seq in sequences:
        core.scheduler.finish(seq.request_id, seq.index, "abort")
    if decoding:
        return Step(f"decode_{size}", size, size, context)
    return Step(f"prefill_{tokens}", tokens * size, size, context)


def _sequence(prompt: np.ndarray, number: int) -> Sequence:
    return Sequence.new(
        prompt,
        request_id=f"bench-{number}",
        index=0,
        params=SamplingParams(**{**NEUTRAL_DEFAULTS, "temperature": 0.0}),
        seed=0,
        max_tokens=1 << 30,
        stop_ids=frozenset(),
        arrived=time.monotonic(),
    )


def _time(core: EngineCore, step: Step, machine: Machine, weight_bytes: int, repeats: int) -> dict[str, Any]:
    runner = core.runner
    kv_tokens = runner.capacity.num_blocks * runner.capacity.block_size
    kv_bytes = step.context * sum(cache.nbytes for cache in runner.kv) // kv_tokens
    milliseconds = 1000 * float(
        np.median(_seconds(lambda: runner.graph.replay(step.tokens, step.seqs, step.seqs), repeats))
    )
    memory = 1000 * (weight_bytes + kv_bytes) / machine.read_rate
    operations = 1000 * machine.product_seconds(runner.graph.operations(step.tokens, step.seqs))
    return {
        "step": step.name,
        "ms": round(milliseconds, 3),
        "tokens_per_second": round(1000 * step.tokens / milliseconds, 1),
        "read_mb": round((weight_bytes + kv_bytes) / 1e6, 3),
        "memory_ms": round(memory, 3),
        "of_memory": round(memory / milliseconds, 3),
        "ops_ms": round(operations, 3),
        "of_ops": round(operations / milliseconds, 3),
    }


def _seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """Of each run, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def _share_rows(shares: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """A row for each kernel, the one that matters most first."""
    steps = list(shares)
    names = sorted(shares[steps[0]], key=lambda name: -max(shares[step][name] for step in steps))
    return [{"kernel": name, **{step: round(100 * shares[step][name], 2) for step in steps}} for name in names]
