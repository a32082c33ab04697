"""The steps that an engine takes before the first request are ones that requests could ask for."""

import time

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from vllm_nb import EngineConfig, SamplingParams
from vllm_nb.api import Engine
from vllm_nb.bench.synthetic import SyntheticCheckpoint
from vllm_nb.engine.build import build_core
from vllm_nb.engine.placement import place
from vllm_nb.engine.sequence import Sequence
from vllm_nb.engine.warm_up import largest_batch, profile_step, warm_up_batches
from vllm_nb.sampling import NEUTRAL_DEFAULTS


@pytest.fixture
def make_runner(tiny_model_path):
    """make_runner(settings) -> the runner of an engine on plain PyTorch, which refuses indices out of bounds."""
    engines = []

    def make(**settings):
        engines.append(Engine(tiny_model_path, EngineConfig(backend="reference", **settings)))
        return engines[-1]._loop.call(lambda core: core.runner)

    yield make
    for engine in engines:
        engine.close()


@pytest.mark.parametrize(
    ("max_num_seqs", "num_kv_blocks", "most"),
    [(256, 64, 2048), (3, 2, 96), (1, 1, 16), (8, 200, 2048)],  # of 16 tokens each
    ids=["two contexts and more", "fewer rows than a step has room for", "one row", "less than a context"],
)
def test_steps_longer_than_the_context_are_taken_by_several_rows(make_runner, max_num_seqs, num_kv_blocks, most):
    runner = make_runner(max_num_seqs=max_num_seqs, num_kv_blocks=num_kv_blocks, max_num_batched_tokens=2048)
    capacity = runner.capacity
    runner.rows.tokens.zero_()  # as they are on a GPU
    batches = [*warm_up_batches(capacity), largest_batch(capacity)]
    for batch in batches:
        logits, hidden = runner._forward_rows(batch)
        assert logits.shape[0] == batch.num_logits
        assert hidden.shape[0] == batch.num_tokens == batch.query_start_loc[-1] == batch.seq_lens.sum()
        assert batch.max_query_len == batch.seq_lens.max() <= capacity.max_model_len
        assert batch.num_seqs <= max_num_seqs
    assert batches[0].max_query_len == 1  # decodes
    assert max(batch.num_tokens for batch in batches) == batches[-1].num_tokens == most
    assert batches[-1].num_logits == min(most, capacity.max_logits)


def core_of(config: EngineConfig):
    return build_core(SyntheticCheckpoint("tiny", torch.device("cpu")), config)


def peak(work) -> int:
    """By PyTorch's own books on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max())


def test_no_step_takes_more_than_the_profile_says():
    """All rows sampled at once, with penalties and log-probabilities."""
    config = EngineConfig(backend="reference", dtype="float32", num_kv_blocks=128, max_num_batched_tokens=64)
    core = core_of(config)
    assert core.runner.capacity.max_num_seqs == 64
    params = SamplingParams(**{**NEUTRAL_DEFAULTS, "temperature": 0.9, "presence_penalty": 0.5, "logprobs": 3})
    for i in range(64):
        seq = Sequence.new(
            np.array([i], np.int32), request_id=str(i), index=0, params=params, seed=i, max_tokens=3,
            stop_ids=frozenset(), arrived=time.monotonic(),
        )  # fmt: skip
        core.scheduler.add(seq)
    took = []
    while core.has_work:
        took.append(peak(core.step))
    assert len(took) == 3
    said = profile_step(core.runner.model, core.runner.capacity, place(config), peak)
    assert 0.98 * max(took) <= said - core.runner.rows.tokens.nbytes <= 2 * max(took)  # a few numbers a row besides


@pytest.mark.parametrize(("backend", "graphs"), [("reference", 0), ("triton", 1)])
def test_the_profile_counts_what_graphs_keep(backend, graphs):
    sizes = {"num_kv_blocks": 8, "max_num_seqs": 3, "max_num_batched_tokens": 8}
    config = EngineConfig(backend=backend, device="cpu", dtype="float32", **sizes)
    core = core_of(config)

    def thousand(work) -> int:
        work()
        return 1000

    rows, outputs = 3 * (8 * 16 + 1) * 4, 3 * (300 + 32) * 4  # logits and hidden states
    said = profile_step(core.runner.model, core.runner.capacity, place(config), thousand)
    assert said == rows + 1000 + graphs * (1000 + outputs)
