"""A recording of every kind of event, and what its panels look at."""

import pytest

from vllm_nb import replay
from vllm_nb.api import Engine
from vllm_nb.config import EngineConfig
from vllm_nb.sampling import SamplingParams


@pytest.fixture(scope="session")
def recording(tiny_model_path, tmp_path_factory):
    """Shared prefixes, a fork, preemptions, evictions, an abort, log-probabilities."""
    path = tmp_path_factory.mktemp("recordings") / "small.vnb"
    config = EngineConfig(
        max_num_seqs=4, num_kv_blocks=24, max_num_batched_tokens=64, prefill_chunk=16, dtype="float32"
    )
    with Engine(tiny_model_path, config) as engine, engine.record(path):
        engine.pause()  # all are there before the first step: what happens does not depend on the machine
        long = SamplingParams(max_tokens=70, ignore_eos=True, temperature=1.0, seed=1)
        streams = [engine.generate_stream(long, "The same beginning, and then " + "x" * i) for i in range(5)]
        streams.append(engine.generate_stream(SamplingParams(max_tokens=30, n=3, seed=2), "The same beginning, forked"))
        seen = SamplingParams(max_tokens=12, logprobs=3, seed=3, ignore_eos=True)
        streams.append(engine.generate_stream(seen, "And with logprobs"))
        engine.step(20)
        streams[1].cancel()
        engine.resume()
        for stream in streams:
            for _ in stream:
                continue
    return path


@pytest.fixture
def timeline(recording):
    timeline = replay(recording)
    yield timeline
    if timeline.player is not None:
        for screen in timeline.player.screens:
            screen.close()
