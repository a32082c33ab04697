"""What asynchronous streams leave behind."""

import asyncio
import gc
import weakref

import pytest

from vllm_nb.api import Engine, Prompt
from vllm_nb.config import EngineConfig
from vllm_nb.sampling import SamplingParams

PROMPT = Prompt(token_ids=[5, 6, 7])


@pytest.fixture(scope="module")
def engine(tiny_model_path):
    with Engine(tiny_model_path, EngineConfig(num_kv_blocks=64, dtype="float32")) as engine:
        yield engine


@pytest.mark.parametrize("left_at", ["the end", "the last item", "the first item"])
def test_the_engine_keeps_no_event_loop_that_has_ended(engine, left_at):
    async def ask() -> weakref.ref:
        stream = await engine.agenerate_stream(SamplingParams(max_tokens=20, ignore_eos=True), PROMPT)
        async for item in stream:
            if left_at == "the first item" or (left_at == "the last item" and item.finish_reason):
                break
        return weakref.ref(asyncio.get_running_loop())

    loops = [asyncio.run(ask()) for _ in range(3)]
    engine.generate(SamplingParams(max_tokens=40, ignore_eos=True), PROMPT)  # until what was left has ended too
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3
