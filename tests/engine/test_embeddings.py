"""Embeddings: the model's hidden states by transformers, whatever else the engine computes beside them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel

from vllm_nb.api import Engine, Prompt
from vllm_nb.config import EngineConfig
from vllm_nb.errors import GenerationError, RequestError
from vllm_nb.events import RequestPreempted
from vllm_nb.sampling import SamplingParams

TEXTS = ["Paris is the capital of France.", "x", "Ein längerer Text, der über mehrere Blöcke geht. " * 3, "<|end|>"]


def unit(rows) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def theirs(tiny_model_path):
    """theirs(token ids) -> hidden states [tokens, hidden] by transformers, float32."""
    model = AutoModel.from_pretrained(tiny_model_path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def hidden(ids: list[int]) -> np.ndarray:
        return model(torch.tensor([ids])).last_hidden_state[0].numpy()

    return hidden


@pytest.fixture(scope="module", params=["cpu", "reference"])
def engine(request, tiny_model_path):
    """Small chunks, so that most prompts need several, and few places, so that requests wait for each other."""
    config = EngineConfig(
        backend=request.param, dtype="float32", max_model_len=512, max_num_seqs=3, max_num_batched_tokens=24
    )
    with Engine(tiny_model_path, config) as engine:
        yield engine


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_pooled_hidden_states(engine, theirs, pooling):
    expected = []
    for text in TEXTS:
        hidden = theirs(engine.encode(Prompt(text=text, parse_special=False)))
        expected.append(hidden.mean(axis=0) if pooling == "mean" else hidden[-1])
    found = engine.embed(TEXTS, pooling=pooling)
    assert found.dtype == np.float32
    assert np.abs(found - unit(np.array(expected))).max() < 2e-5
    again = engine.embed(TEXTS, pooling=pooling)  # now with all blocks in the prefix cache
    assert np.abs(again - found).max() < 1e-6


def test_one_text_token_ids_and_fewer_dimensions(engine, theirs):
    ids = [5, 200, 7, 7]
    whole = engine.embed(Prompt(token_ids=ids))
    assert np.abs(whole - unit(theirs(ids).mean(axis=0))).max() < 2e-5
    short = engine.embed([Prompt(token_ids=ids)], dimensions=5)
    assert short.shape == (1, 5)
    assert np.allclose(short[0], unit(whole[:5]), atol=1e-6)


def test_special_tokens_in_a_text_are_text(engine):
    assert len(engine.embedding_request(["<|end|>"]).run().vectors) == 1
    control = engine.embed(Prompt(text="<|end|>", parse_special=True))
    assert np.abs(engine.embed("<|end|>") - control).max() > 0.01


def test_a_mean_never_takes_cached_blocks_and_a_last_does(engine):
    prompt = [(3 * i) % 250 for i in range(100)]
    engine.generate(SamplingParams(max_tokens=1), Prompt(token_ids=prompt))
    usage = {
        pooling: engine.embedding_request([Prompt(token_ids=prompt)], pooling).run().usage
        for pooling in ("mean", "last")
    }
    assert (usage["mean"].cached_tokens, usage["last"].cached_tokens) == (0, 96)
    assert usage["mean"].prompt_tokens == usage["mean"].total_tokens == 100
    fresh = [(7 * i) % 250 for i in range(100)]
    engine.embed(Prompt(token_ids=fresh))  # and what it computes, others find
    assert engine.generate(SamplingParams(max_tokens=1), Prompt(token_ids=fresh)).usage.cached_tokens == 96


def test_as_long_as_the_context_and_more_than_the_queue_holds(tiny_model_path, theirs):
    config = EngineConfig(dtype="float32", max_model_len=64, max_queued_requests=4, max_num_seqs=2)
    with Engine(tiny_model_path, config) as engine:
        prompts = [[i, *range(63)] for i in range(11)]
        vectors = engine.embed([Prompt(token_ids=ids) for ids in prompts])
        engine.check_integrity()
        assert engine.stats()["kv_blocks"]["used"] == 0
    expected = unit(np.array([theirs(ids).mean(axis=0) for ids in prompts]))
    assert np.abs(vectors - expected).max() < 2e-5


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([], {}, "input must hold at least one text"),
        (None, {}, "inputs must be a text, a Prompt, or a list of them, not None"),
        (["a", 5], {}, r"inputs must be a text, a Prompt, or a list of them, not \['a', 5\]"),
        (["a", ""], {}, r"input\[1\] must have at least one token"),
        (["a", "b" * 513], {}, r"input\[1\] must have at most 512 tokens, not 513.*larger max_model_len"),
        (["a"], {"pooling": "max"}, "pooling must be one of mean, last, not 'max'"),
        (["a"], {"dimensions": 0}, "dimensions must be a whole number from 1 to 32"),
        (["a"], {"dimensions": 33}, "dimensions must be a whole number from 1 to 32, the model's own, not 33"),
        ([Prompt(token_ids=[1, 260])], {}, "token id 260"),
    ],
)
def test_what_is_refused(engine, inputs, options, message):
    with pytest.raises(RequestError, match=message):
        engine.embed(inputs, **options)


def test_not_a_number_is_an_error(make_core, new_sequence, poisoned_model):
    core = make_core(model=poisoned_model(60))
    seqs = [new_sequence([1, token, 3], request_id=str(token), pooling="mean") for token in (2, 60)]
    for seq in seqs:
        core.scheduler.add(seq)
    good, bad = core.step()
    assert good.embedding is not None
    assert (bad.embedding is None) or "NaN" in bad.error


def test_an_abort_between_two_windows_is_seen(tiny_model_path):
    config = EngineConfig(dtype="float32", max_model_len=64, max_queued_requests=2, max_num_seqs=1)
    with Engine(tiny_model_path, config) as engine:
        request = engine.embedding_request(["a", "b", "c"])
        request.cancel()
        with pytest.raises(GenerationError, match="aborted"):
            request.run()


# Beside other traffic


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_preempted_prompt_begins_anew(make_core, new_sequence, pooling):
    """The decoding sequence needs the blocks of the one that is half-way through its prompt."""
    prompt = [(5 * i) % 59 for i in range(28)]
    core = make_core(num_blocks=10, block_size=4, chunk=1, stored=0)
    preempted, found = [], []
    core.events.subscribe(lambda e: preempted.append(e.computed_tokens) if isinstance(e, RequestPreempted) else None)
    core.scheduler.add(new_sequence([1] * 4, request_id="decodes", max_tokens=20))
    core.step()
    core.scheduler.add(new_sequence(prompt, request_id="embeds", pooling=pooling))
    while core.scheduler.has_work:
        found += [output.embedding for output in core.step() if output.embedding is not None]
        core.scheduler.check_integrity()
    assert 0 < preempted[0] < 28
    alone = make_core(num_blocks=64, stored=0)
    alone.scheduler.add(new_sequence(prompt, pooling=pooling))
    (output,) = alone.step()
    assert np.allclose(found, output.embedding, atol=1e-9)


@st.composite
def arrivals(draw: st.DrawFn) -> dict:
    return {
        "prompt": [(7 * draw(st.sampled_from([0, 1])) + 3 * i) % 59 for i in range(draw(st.integers(1, 40)))],
        "pooling": draw(st.sampled_from(["mean", "last", None])),
        "arrives": draw(st.integers(0, 8)),
        "max_tokens": draw(st.integers(1, 12)),
    }


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(arrivals(), min_size=1, max_size=7),
    num_blocks=st.integers(13, 30),
    max_num_seqs=st.integers(1, 5),
    chunk=st.integers(1, 20),
    stored=st.sampled_from([None, 0, 3]),
)
def test_nothing_beside_it_changes_a_vector(
    requests, num_blocks, max_num_seqs, chunk, stored, make_core, new_sequence, solo
):
    core = make_core(num_blocks=num_blocks, max_num_seqs=max_num_seqs, budget=24, chunk=chunk, stored=stored)
    seqs = [
        new_sequence(r["prompt"], request_id=str(i), max_tokens=r["max_tokens"], pooling=r["pooling"])
        for i, r in enumerate(requests)
    ]
    found = {}
    step = 0
    while core.scheduler.has_work or any(r["arrives"] >= step for r in requests):
        for r, seq in zip(requests, seqs, strict=True):
            if r["arrives"] == step:
                core.scheduler.add(seq)
        for output in core.step():
            if output.embedding is not None:
                assert (output.finish_reason, output.token) == ("stop", None)
                found[output.seq] = output.embedding
        core.scheduler.check_integrity()
        step += 1
        assert step < 2000
    assert core.scheduler.blocks.num_free == num_blocks
    alone = make_core(num_blocks=64, max_num_seqs=1, budget=256, stored=0)
    for r, seq in zip(requests, seqs, strict=True):
        if r["pooling"] is None:
            assert seq.tokens[seq.prompt_len :].tolist() == solo(r["prompt"], max_tokens=r["max_tokens"])
            continue
        assert seq.output_len == 0
        alone.scheduler.add(new_sequence(r["prompt"], pooling=r["pooling"]))
        (output,) = alone.step()
        assert np.allclose(found[seq], output.embedding, atol=1e-9)
