"""Whole decode steps beside their floor, and many requests at once."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from vllm_nb.bench.gpu_batches import decode_batch
from vllm_nb.bench.synthetic import SHAPES, SyntheticCheckpoint, Timer
from vllm_nb.config import EngineConfig
from vllm_nb.engine.build import build_core
from vllm_nb.engine.engine import EngineCore
from vllm_nb.engine.sequence import Sequence
from vllm_nb.sampling import NEUTRAL_DEFAULTS, SamplingParams


def steps(shapes: str, device: torch.device, timer: Timer, bytes_per_second: float) -> Iterator[dict[str, Any]]:
    """The forward pass of decode steps as the runner takes them, against the weights and the cache read once."""
    core = _core(shapes, device, max_num_seqs=64 if device.type == "cuda" else 4)
    runner, context = core.runner, 1024 if device.type == "cuda" else 24
    per_token = sum(kv.nbytes for kv in runner.kv) // (runner.capacity.num_blocks * runner.capacity.block_size)
    for rows in (1, 8, 64) if device.type == "cuda" else (1, 3):
        batch, _ = decode_batch(rows, context, torch.device("cpu"))
        seconds = timer(partial(runner.forward, batch))
        floor = (core.info.step_weight_bytes + rows * context * per_token) / bytes_per_second
        yield {
            "rows": rows,
            "context": context,
            "ms": round(1e3 * seconds, 3),
            "floor_ms": round(1e3 * floor, 3),
            "of_floor": round(floor / seconds, 3),
            "tokens_per_second": round(rows / seconds, 1),
        }


def throughput(shapes: str, device: torch.device, requests: int, overlap: bool | None) -> Iterator[dict[str, Any]]:
    """The engine's step loop, greedily, all requests at once."""
    prompts, outputs = workload(shapes, requests, (100, 1024) if device.type == "cuda" else (2, 4))
    core = _core(shapes, device, max_num_seqs=min(256, requests), overlap=overlap)
    for prompt, count in ((prompts[0], 2), *zip(prompts, outputs, strict=True)):
        core.scheduler.add(_sequence(prompt, int(count)))
    core.step()
    start, tokens = time.perf_counter(), 0
    while core.has_work:
        tokens += len(core.step())
    yield rate("vllm_nb", tokens, time.perf_counter() - start)


def workload(shapes: str, requests: int, between: tuple[int, int]) -> tuple[list[np.ndarray], np.ndarray]:
    """Prompts and output lengths, both uniform `between`; always the same (also for transformers)."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(between[0], between[1] + 1, (requests, 2))
    prompts = [rng.integers(0, SHAPES[shapes].vocab_size, n, dtype=np.int32) for n in lengths[:, 0]]
    return prompts, lengths[:, 1]


def rate(engine: str, tokens: int, seconds: float) -> dict[str, Any]:
    return {
        "engine": engine,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(tokens / seconds, 1),
    }


def _core(shapes: str, device: torch.device, max_num_seqs: int, overlap: bool | None = None) -> EngineCore:
    on_gpu = device.type == "cuda"
    config = EngineConfig(
        device=device.type,
        backend="triton",
        dtype="bfloat16" if on_gpu else "float32",
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=8192 if on_gpu else 32,
        prefill_chunk=2048 if on_gpu else 16,
        prefix_cache=False,
        overlap=overlap,
    )
    return build_core(SyntheticCheckpoint(shapes, device), config)


def _sequence(prompt: np.ndarray, outputs: int) -> Sequence:
    return Sequence.new(
        prompt,
        request_id="bench",
        index=0,
        params=SamplingParams(**{**NEUTRAL_DEFAULTS, "temperature": 0.0}),
        seed=0,
        max_tokens=outputs,
        stop_ids=frozenset(),
        arrived=time.monotonic(),
    )
