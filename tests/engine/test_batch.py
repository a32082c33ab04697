"""A step's tensors: the short way from one decode step to the next gives what the long way gives."""

import numpy as np

from vllm_nb.engine.batch import BatchBuffers


def test_steps_that_go_on_have_the_same_input_as_steps_made_anew(make_core, new_sequence):
    core = make_core(num_blocks=40, max_num_seqs=4, budget=64)
    runner, capacity = core.runner, core.runner.capacity
    advanced = 0
    for number, (prompt, tokens) in enumerate([(3, 40), (16, 9), (33, 50), (5, 70), (15, 30), (1, 20)]):
        core.scheduler.add(new_sequence(list(range(1, prompt + 1)), request_id=str(number), max_tokens=tokens))
    while core.scheduler.has_work:
        plan = core.scheduler.schedule()
        before = runner.buffers._last
        batch, logits_row = runner.prepare(plan)
        advanced += runner.buffers._last is before
        anew = BatchBuffers(
            capacity.max_num_batched_tokens,
            capacity.max_num_seqs,
            capacity.max_logits,
            runner.rows.block_tables.shape[1],
        )
        expected, expected_row = anew.gather(plan, runner.rows)
        assert np.array_equal(logits_row, expected_row)
        for name in anew.arrays:
            assert np.array_equal(getattr(batch, name), getattr(expected, name)), name
        for name in ("num_tokens", "num_seqs", "num_logits", "max_query_len", "max_seq_len"):
            assert getattr(batch, name) == getattr(expected, name), name
        logits, _ = runner.forward(batch)
        core.scheduler.update(plan, core.sampler(logits, plan, logits_row).wait().tokens)
    assert advanced > 50
