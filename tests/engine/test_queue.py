"""How much may wait: more is refused, and what was taken is served."""

import pytest

from vllm_nb.api import EngineBuilder, Prompt
from vllm_nb.errors import QueueFullError
from vllm_nb.sampling import SamplingParams
from vllm_nb.weights.hub import ModelRepo


def test_a_list_longer_than_the_queue(smollm2_path):
    builder = EngineBuilder(ModelRepo.model_file(str(smollm2_path))).without_flash_attn()
    with builder.with_config(max_queued_requests=2, max_num_seqs=2, num_kv_blocks=32).build() as engine:
        outputs = engine.generate(SamplingParams(max_tokens=1), ["Hi"] * 7)
        assert len(outputs) == 7
        running = engine.generate_stream(SamplingParams(max_tokens=200, ignore_eos=True, n=2), "Hi")
        next(running)
        waiting = engine.generate_stream(SamplingParams(max_tokens=1), "Hi")
        with pytest.raises(QueueFullError, match=r"the limit is 2|2 may; try again later"):
            engine.generate_stream(SamplingParams(n=3), "Hi")
        running.cancel()
        assert [item.finish_reason for item in waiting][-1] == "length"


def test_the_queue_holds_so_many_tokens(smollm2_path):
    builder = EngineBuilder(ModelRepo.model_file(str(smollm2_path))).without_flash_attn()
    long = Prompt(token_ids=[7] * 300)
    with builder.with_config(max_queued_tokens=400, max_num_seqs=1, num_kv_blocks=64).build() as engine:
        running = engine.generate_stream(SamplingParams(max_tokens=400, ignore_eos=True), "Hi")
        next(running)
        waiting = engine.generate_stream(SamplingParams(max_tokens=1, n=1), long)
        with pytest.raises(QueueFullError, match=r"300 prompt tokens are waiting, the limit is 400; try again later"):
            engine.generate_stream(SamplingParams(max_tokens=1), long)
        engine.generate_stream(SamplingParams(max_tokens=1), Prompt(token_ids=[7] * 90)).cancel()
        running.cancel()
        assert [item.finish_reason for item in waiting][-1] == "length"
        alone = engine.generate(SamplingParams(max_tokens=1), Prompt(token_ids=[7] * 500))  # nobody waits: any length
        assert alone.prompt_length == 500
