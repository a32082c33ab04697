"""The scheduler on a real model: whatever the load, every request gets the tokens it would get alone."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nb.engine.sequence import Sequence, Status
from vllm_nb.events import RequestPreempted, StepDone
from vllm_nb.sampling import SamplingParams


def params_of(kind: str, seed: int) -> SamplingParams:
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    kinds = {
        "greedy": {"temperature": 0.0},
        "warm": {"temperature": 1.5},
        "filtered": {"temperature": 0.9, "top_k": 9, "top_p": 0.8, "min_p": 0.02},
        "penalised": {"temperature": 0.7, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "min_tokens": 3},
    }
    return SamplingParams(**{**neutral, **kinds[kind]}, seed=seed)


@st.composite
def request(draw: st.DrawFn) -> dict:
    start = draw(st.sampled_from([0, 1]))  # two families of prompts, so that prefixes are shared
    length = draw(st.integers(1, 30))
    return {
        "prompt": [(7 * start + 3 * i) % 59 for i in range(length)],
        "kind": draw(st.sampled_from(["greedy", "warm", "filtered", "penalised"])),
        "seed": draw(st.integers(0, 3)),
        "max_tokens": draw(st.integers(1, 16)),
        "stop_ids": draw(st.sampled_from([(), (5, 17, 23)])),
        "n": draw(st.sampled_from([1, 1, 1, 3])),
        "priority": draw(st.sampled_from([0, 0, -1, 2])),
        "arrives": draw(st.integers(0, 12)),  # at this step
        "aborted": draw(st.one_of(st.none(), st.integers(0, 20))),  # at this step
    }


def sequences_of(spec: dict, name: str, new_sequence) -> list[Sequence]:
    params = replace(params_of(spec["kind"], spec["seed"]), priority=spec["priority"])
    seqs: list[Sequence] = []
    for index in range(spec["n"]):
        seqs.append(
            new_sequence(
                spec["prompt"],
                params,
                request_id=name,
                index=index,
                max_tokens=spec["max_tokens"],
                stop_ids=spec["stop_ids"],
                leader=seqs[0] if seqs else None,
            )
        )
    return seqs


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(request(), min_size=1, max_size=8),
    num_blocks=st.integers(13, 40),
    max_num_seqs=st.integers(1, 6),
    chunk=st.integers(1, 20),
    stored=st.sampled_from([None, 0, 3]),
    overlap=st.booleans(),
)
def test_every_request_gets_its_solo_tokens(
    requests, num_blocks, max_num_seqs, chunk, stored, overlap, make_core, new_sequence, solo
):
    core = make_core(
        num_blocks=num_blocks, max_num_seqs=max_num_seqs, budget=24, chunk=chunk, stored=stored, overlap=overlap
    )
    groups = [sequences_of(spec, f"r{i}", new_sequence) for i, spec in enumerate(requests)]
    ended: set[Sequence] = set()
    step = 0
    while core.has_work or any(spec["arrives"] >= step for spec in requests):
        for spec, seqs in zip(requests, groups, strict=True):
            if spec["arrives"] == step:
                for seq in seqs:
                    core.scheduler.add(seq)
            if spec["aborted"] == step:
                ended |= {output.seq for output in core.scheduler.finish(seqs[0].request_id, None, "abort")}
        core.step()
        core.scheduler.check_integrity()
        step += 1
        assert step < 2000, "the scheduler makes no progress"

    assert core.scheduler.blocks.num_free == num_blocks
    for spec, seqs in zip(requests, groups, strict=True):
        for seq in seqs:
            assert seq.status is Status.FINISHED
            alone = solo(spec["prompt"], seq.params, seq.index, spec["max_tokens"], spec["stop_ids"])
            got = seq.tokens[seq.prompt_len :].tolist()
            assert got == (alone[: len(got)] if seq in ended else alone)


def run(core, *sequences: Sequence) -> None:
    for seq in sequences:
        core.scheduler.add(seq)
    while core.has_work:
        core.step()
        core.scheduler.check_integrity()


def test_preempts_the_last_arrived_and_never_the_first(make_core, new_sequence):
    core = make_core(num_blocks=10, block_size=4, stored=0)
    preempted = []
    core.events.subscribe(lambda e: preempted.append(e.sequence) if isinstance(e, RequestPreempted) else None)
    first, last = (new_sequence([1] * 10, request_id=name, max_tokens=20) for name in ("first", "last"))
    run(core, first, last)
    assert preempted
    assert set(preempted) == {last.arrival}
    assert first.output_len == last.output_len == 20


def test_priority_goes_before_arrival_when_admitting_and_preempting(make_core, new_sequence):
    def make(name: str, priority: int, prompt: int = 3) -> Sequence:
        params = replace(params_of("greedy", 0), priority=priority)
        return new_sequence([1] * prompt, params, request_id=name, max_tokens=20)

    one_at_a_time = make_core(max_num_seqs=1)
    running, late, later, urgent = make("running", 9), make("late", 1), make("later", 1), make("urgent", -1)
    one_at_a_time.scheduler.add(running)
    one_at_a_time.step()
    run(one_at_a_time, late, later, urgent)
    order = sorted((running, late, later, urgent), key=lambda seq: seq.scheduled)
    assert order == [running, urgent, late, later]  # whoever runs is not driven out

    scarce = make_core(num_blocks=10, block_size=4, stored=0)
    preempted = []
    scarce.events.subscribe(lambda e: preempted.append(e.sequence) if isinstance(e, RequestPreempted) else None)
    unimportant, important = make("first", 3, prompt=10), make("last", 2, prompt=10)
    run(scarce, unimportant, important)
    assert set(preempted) == {unimportant.arrival}


def test_a_long_prompt_is_chunked_while_others_decode(make_core, new_sequence):
    core = make_core(num_blocks=64, budget=64, chunk=8)
    steps: list[StepDone] = []
    short, long = new_sequence([1, 2], request_id="short", max_tokens=12), new_sequence([3] * 60, request_id="long")
    core.scheduler.add(short)
    core.step()
    core.events.subscribe(lambda e: steps.append(e) if isinstance(e, StepDone) else None)
    run(core, long)
    batches = [dict(zip(s.sequences, s.num_tokens, strict=True)) for s in steps]
    mixed = [batch for batch in batches if batch.get(short.arrival) == 1 and len(batch) == 2]
    assert mixed, "prefill and decode never shared a step"
    assert all(batch[long.arrival] <= 8 for batch in mixed)
    alone = next(s for s in steps if len(s.sequences) == 1)
    assert alone.token_budget == 64 or short.status is Status.FINISHED


def test_a_prompt_alone_is_not_chunked(make_core, new_sequence):
    core = make_core(num_blocks=64, budget=64, chunk=8)
    core.scheduler.add(new_sequence([3] * 60, max_tokens=1))
    core.step()
    assert not core.scheduler.has_work


def test_answers_to_one_prompt_share_its_blocks(make_core, new_sequence):
    core = make_core(num_blocks=64, block_size=4)
    first = new_sequence(list(range(17)), max_tokens=4)
    rest = [new_sequence(list(range(17)), index=i, max_tokens=4, leader=first) for i in (1, 2)]
    for seq in (first, *rest):
        core.scheduler.add(seq)
    core.step()
    assert [seq.status for seq in rest] == [Status.WAITING] * 2
    core.step()
    assert [seq.num_cached for seq in rest] == [16, 16]
    assert first.blocks[:4] == rest[0].blocks[:4] == rest[1].blocks[:4]
    run(core)


def test_a_nan_row_fails_alone(make_core, new_sequence, solo, poisoned_model):
    core = make_core(model=poisoned_model(60))
    good, bad = new_sequence([1, 2, 3], request_id="good"), new_sequence([1, 60, 3], request_id="bad")
    core.scheduler.add(good)
    core.scheduler.add(bad)
    outputs = core.step()
    core.scheduler.check_integrity()
    errors = {output.seq.request_id: output.error for output in outputs if output.finish_reason == "error"}
    assert set(errors) == {"bad"}
    assert "NaN" in errors["bad"]
    run(core)
    assert good.tokens[3:].tolist() == solo([1, 2, 3])


def test_a_failing_forward_ends_its_batch_and_the_engine_goes_on(make_core, new_sequence, tiny_model, solo):
    class Flaky:
        config = tiny_model.config
        fails = True

        def forward(self, batch, kv):
            if self.fails:
                raise MemoryError("no memory")
            return tiny_model.forward(batch, kv)

    model = Flaky()
    core = make_core(model=model)
    core.scheduler.add(new_sequence([1, 2]))
    (output,) = core.step()
    assert output.finish_reason == "error"
    assert "no memory" in output.error
    core.scheduler.check_integrity()
    model.fails = False
    again = new_sequence([1, 2])
    run(core, again)
    assert again.tokens[2:].tolist() == solo([1, 2])


@pytest.mark.parametrize("length", [512, 500])
def test_a_second_identical_prompt_computes_at_most_one_block(make_core, new_sequence, length):
    core = make_core(num_blocks=80, block_size=16, max_len=600, budget=600)
    prompt = [(i * i) % 59 for i in range(length)]
    run(core, new_sequence(prompt, request_id="a", max_tokens=1))
    second = new_sequence(prompt, request_id="b", max_tokens=1)
    run(core, second)
    assert length - second.num_cached <= 16
