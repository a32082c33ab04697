"""A small engine in process, and a load on it that makes every kind of event."""

from collections.abc import Callable, Iterator

import pytest

from vllm_nb.api import Engine
from vllm_nb.config import EngineConfig
from vllm_nb.sampling import SamplingParams


@pytest.fixture(scope="session")
def small_engine(tiny_model_path) -> Iterator[Engine]:
    """So few blocks that requests are preempted and blocks evicted."""
    config = EngineConfig(
        max_num_seqs=4, num_kv_blocks=24, max_num_batched_tokens=64, prefill_chunk=16, dtype="float32"
    )
    with Engine(tiny_model_path, config) as engine:
        yield engine


@pytest.fixture(scope="session")
def busy() -> Callable[[Engine], None]:
    """Requests that share prefixes, fork, are preempted, evict each other and are aborted."""

    def run(engine: Engine) -> None:
        long = SamplingParams(max_tokens=70, ignore_eos=True, temperature=1.0, seed=1)
        engine.pause()  # all are there before the first step: what happens does not depend on the machine
        streams = [
            engine.generate_stream(long, "The same beginning of all texts, and then " + "x" * i) for i in range(5)
        ]
        streams.append(engine.generate_stream(SamplingParams(max_tokens=30, n=3, seed=2), "The same beginning, forked"))
        seen = SamplingParams(max_tokens=12, logprobs=3, seed=3, ignore_eos=True)
        streams.append(engine.generate_stream(seen, "And with logprobs"))
        engine.step(20)
        streams[1].cancel()
        engine.resume()
        for stream in streams:
            for _ in stream:
                continue

    return run
