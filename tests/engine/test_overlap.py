"""A step launched while the last one is under way: the same answers and books, and what is found late is undone."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nb import EngineConfig, ModelLoadError, Prompt, SamplingParams
from vllm_nb.api import Engine
from vllm_nb.engine.sequence import Status
from vllm_nb.events import StepDone, TokensSampled
from vllm_nb.sampling import NEUTRAL_DEFAULTS

NEUTRAL = SamplingParams(**{**NEUTRAL_DEFAULTS, "temperature": 0.0})
KINDS = {
    "greedy": NEUTRAL,
    "warm": replace(NEUTRAL, temperature=1.5, seed=3),
    "adjusted": replace(
        NEUTRAL,
        temperature=0.8,
        seed=1,
        repetition_penalty=1.3,
        frequency_penalty=0.5,
        min_tokens=4,
        logit_bias={9: 4.0},
    ),
    "logprobs": replace(NEUTRAL, temperature=1.1, seed=2, top_k=7, logprobs=2, prompt_logprobs=1),
}


@st.composite
def request(draw: st.DrawFn) -> dict:
    start = draw(st.sampled_from([0, 1]))
    return {
        "prompt": [(7 * start + 3 * i) % 59 for i in range(draw(st.integers(1, 30)))],
        "params": KINDS[draw(st.sampled_from(sorted(KINDS)))],
        "max_tokens": draw(st.integers(1, 14)),
        "stop_ids": draw(st.sampled_from([(), (5, 17, 23), tuple(range(0, 61, 3))])),
        "pooling": draw(st.sampled_from([None, None, None, "mean", "last"])),
        "arrives": draw(st.integers(0, 8)),
        "aborted": draw(st.one_of(st.none(), st.none(), st.integers(0, 20))),
    }


def check_stored(core, seqs):
    """The prefix cache holds tokens that were booked, and no others."""
    size = core.scheduler.blocks.block_size
    for _, _, tokens in core.scheduler.blocks.stored().values():
        block = np.frombuffer(tokens, np.int32)
        assert any((seq.tokens[: len(seq) // size * size].reshape(-1, size) == block).all(1).any() for seq in seqs)


def drive(core, requests, new_sequence):
    """Everything that comes out for each request: tokens, why it ended, log-probabilities, embedding."""
    seqs = [
        new_sequence(
            spec["prompt"], spec["params"], request_id=str(i), max_tokens=spec["max_tokens"],
            stop_ids=spec["stop_ids"], pooling=spec["pooling"],
        )
        for i, spec in enumerate(requests)
    ]  # fmt: skip
    results = [{"tokens": [], "logprobs": [], "prompt": {}, "ended": None, "embedding": None} for _ in requests]
    step = 0
    while core.has_work or any(spec["arrives"] >= step for spec in requests):
        outputs = []
        for seq, spec in zip(seqs, requests, strict=True):
            if spec["arrives"] == step:
                core.scheduler.add(seq)
            if spec["aborted"] == step:
                outputs += core.scheduler.finish(seq.request_id, None, "abort")
        for output in outputs + core.step():
            result = results[int(output.seq.request_id)]
            assert result["ended"] is None
            result["tokens"] += [] if output.token is None else [output.token]
            if output.logprobs is not None:
                result["logprobs"].append((output.logprobs.rank, output.logprobs.top_ids.tolist()))
            if output.prompt_logprobs is not None:
                ranks = enumerate(output.prompt_logprobs[1].tolist(), output.prompt_start)
                result["prompt"] |= dict(ranks)
            result["ended"], result["embedding"] = output.finish_reason, output.embedding
        core.scheduler.check_integrity()
        check_stored(core, seqs)
        step += 1
        assert step < 2000, "no progress"
    assert core.scheduler.blocks.num_free == core.scheduler.blocks.num_blocks
    return seqs, results


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(request(), min_size=1, max_size=7),
    num_blocks=st.integers(13, 40),
    max_num_seqs=st.integers(1, 6),
    stored=st.sampled_from([None, 0, 3]),
)
def test_answers_are_the_same_with_and_without(make_core, new_sequence, requests, num_blocks, max_num_seqs, stored):
    sizes = {"num_blocks": num_blocks, "max_num_seqs": max_num_seqs, "budget": 24, "chunk": 9, "stored": stored}
    _, ahead = drive(make_core(**sizes, overlap=True), requests, new_sequence)
    _, alone = drive(make_core(**sizes), requests, new_sequence)
    for spec, a, b in zip(requests, ahead, alone, strict=True):
        if "abort" in (a["ended"], b["ended"]):  # at what token depends on when steps are booked
            count = min(len(a["tokens"]), len(b["tokens"]))
            assert a["tokens"][:count] == b["tokens"][:count]
            assert abs(len(a["tokens"]) - len(b["tokens"])) <= spec["max_tokens"]
            continue
        embeddings = a.pop("embedding"), b.pop("embedding")
        assert a == b
        if spec["pooling"]:
            np.testing.assert_allclose(*embeddings, atol=1e-9)


def booked_and_launched(core):
    """What happens in order: "launch" of a forward pass, tokens booked."""
    seen = []
    forward = core.runner.forward
    core.runner.forward = lambda batch: seen.append("launch") or forward(batch)
    core.events.subscribe(lambda e: seen.append(e.token_ids) if isinstance(e, TokensSampled) else None)
    return seen


@pytest.mark.parametrize("overlap", [False, True])
def test_the_next_step_is_launched_before_the_last_is_booked(make_core, new_sequence, overlap):
    core = make_core(overlap=overlap)
    seen = booked_and_launched(core)
    seq = new_sequence([1, 2, 3], max_tokens=3)
    core.scheduler.add(seq)
    while core.has_work:
        core.step()
    tokens = [[token] for token in seq.tokens[3:].tolist()]
    if overlap:  # and nothing is launched for a sequence that max_tokens is known to end
        assert seen == ["launch", "launch", tokens[0], "launch", tokens[1], tokens[2]]
    else:
        assert seen == ["launch", tokens[0], "launch", tokens[1], "launch", tokens[2]]


def test_what_a_stop_token_ended_is_computed_once_in_vain_and_left_out(make_core, new_sequence, solo):
    prompt, core, steps, computed = [1, 2, 3], make_core(overlap=True), [], []
    alone = solo(prompt, max_tokens=4)
    forward = core.runner.forward
    core.runner.forward = lambda batch: computed.append(batch.num_tokens) or forward(batch)
    core.events.subscribe(lambda e: steps.append(e) if isinstance(e, StepDone) else None)
    ending = new_sequence(prompt, request_id="ending", max_tokens=50, stop_ids=(alone[3],))
    going = new_sequence([4, 5], request_id="going", max_tokens=8)
    for seq in (ending, going):
        core.scheduler.add(seq)
    while core.has_work:
        core.step()
        core.scheduler.check_integrity()
        assert bool(ending.blocks) == (ending.status is not Status.FINISHED)
    assert ending.tokens[3:].tolist() == alone[: alone.index(alone[3]) + 1]
    assert going.tokens[2:].tolist() == solo([4, 5], max_tokens=8)
    told = [dict(zip(step.sequences, step.num_tokens, strict=True)) for step in steps]
    assert sum(step.get(ending.arrival, 0) for step in told) == len(ending) - 1
    assert sum(computed) == sum(sum(step.values()) for step in told) + 1


def test_one_whose_logits_break_ends_alone(make_core, new_sequence, poisoned_model, solo):
    first = solo([1, 2, 3], max_tokens=3)
    core = make_core(model=poisoned_model(first[1]), overlap=True)
    bad, good = new_sequence([1, 2, 3], request_id="bad"), new_sequence([4, 5], request_id="good")
    assert first[1] not in solo([4, 5])
    for seq in (bad, good):
        core.scheduler.add(seq)
    outputs = []
    while core.has_work:
        outputs += core.step()
    (error,) = [output.error for output in outputs if output.finish_reason == "error"]
    assert error.startswith("the model gave NaN logits")
    assert bad.tokens[3:].tolist() == first[:2]
    assert good.tokens[2:].tolist() == solo([4, 5])


def test_a_failing_launch_does_not_take_back_what_was_computed(make_core, new_sequence, solo):
    core = make_core(overlap=True)
    seq = new_sequence([1, 2, 3], max_tokens=8)
    core.scheduler.add(seq)
    core.step()
    core.step()

    def fails(batch):
        raise RuntimeError("out of memory")

    core.runner.forward = fails
    outputs = core.step()
    assert [output.token for output in outputs] == [solo([1, 2, 3])[1], None]
    assert "out of memory" in outputs[-1].error
    assert not core.has_work
    core.scheduler.check_integrity()


@pytest.fixture(scope="module")
def engines(tiny_model_path):
    shared = {"backend": "reference", "dtype": "float32", "num_kv_blocks": 64}
    with (
        Engine(tiny_model_path, EngineConfig(**shared, overlap=True)) as ahead,
        Engine(tiny_model_path, EngineConfig(**shared)) as alone,
    ):
        yield ahead, alone


def test_grammars_see_each_token_before_the_next_is_drawn(engines):
    prompts = [Prompt(text="to be or not to be"), Prompt(text="x")]
    for outputs in ({"regex": "[a-z]{20}"}, {"json": {"type": "array", "items": {"type": "integer"}}}):
        params = SamplingParams(seed=1, max_tokens=24, structured_outputs=outputs)
        free = SamplingParams(seed=2, max_tokens=24)
        ours, theirs = ([e.generate(p, prompts) for p in (params, free)] for e in engines)
        assert [[o.token_ids for o in row] for row in ours] == [[o.token_ids for o in row] for row in theirs]
    engines[0].check_integrity()


def test_a_single_step_is_seen_whole(engines):
    engine, _ = engines
    engine.pause()
    stream = engine.generate_stream(SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), Prompt(text="abc"))
    for made in (1, 2, 3):
        assert engine.step(1) == 1
        (sequence,) = engine.snapshot().sequences
        assert len(sequence["tokens"]) == sequence["prompt_len"] + made == sequence["computed"] + 1
    engine.resume()
    assert sum(len(item.token_ids) for item in stream) == 4


def test_the_cpu_backend_says_why_it_has_none(tiny_model_path):
    with pytest.raises(ModelLoadError, match="overlap does nothing for backend 'cpu': there a step runs on"):
        Engine(tiny_model_path, EngineConfig(device="cpu", overlap=True))
