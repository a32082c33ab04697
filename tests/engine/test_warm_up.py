"""The steps that an engine takes before the first request are ones that requests could ask for."""

import pytest

from vllm_nb import EngineConfig
from vllm_nb.api import Engine
from vllm_nb.engine.warm_up import largest_batch, warm_up_batches


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
