"""The engine on Triton's kernels, interpreted: the same answers as on the reference, and no kernel that warming up has
not met."""

import threading
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from triton import knobs
from triton.runtime.interpreter import InterpretedFunction

from vllm_nb import EngineConfig, ModelLoadError, Prompt, SamplingParams
from vllm_nb.api import Engine
from vllm_nb.bench.synthetic import SyntheticCheckpoint
from vllm_nb.engine.batch import Batch
from vllm_nb.engine.build import build_core
from vllm_nb.engine.graphs import CudaCapture, DecodeGraphs, ladder
from vllm_nb.engine.warm_up import warm_up_batches, warm_up_sampling

DEVICE = torch.device("cpu" if knobs.runtime.interpret else "cuda")
SETTINGS = {
    "device": DEVICE.type,
    "dtype": "float32",
    "max_model_len": 96,
    "max_num_seqs": 6,
    "max_num_batched_tokens": 24,
    "num_kv_blocks": 64,
}
REFUSAL = "backend 'triton' cannot be used: its kernels need an NVIDIA GPU and the device is 'cpu'"


@contextmanager
def compiled_on_a_gpu():
    """What Triton compiles meanwhile."""
    seen: set[tuple] = set()
    before = knobs.runtime.jit_post_compile_hook
    knobs.runtime.jit_post_compile_hook = lambda *, key, repr, **_: seen.add((repr, key)) and False
    try:
        yield seen
    finally:
        knobs.runtime.jit_post_compile_hook = before


@contextmanager
def launches_seen():
    """What would be compiled: kernel, constants, types, and numbers that Triton makes variants for."""
    seen: set[tuple] = set()
    original = InterpretedFunction.run

    def run(self, *args, grid, warmup, **kwargs):
        exempt = self.kwargs.get("do_not_specialize") or ()
        values = dict(zip(self.arg_names, args, strict=False)) | kwargs
        key = [self.fn.__name__]
        for name, value in sorted(values.items()):
            if isinstance(value, torch.Tensor):
                key.append((name, value.dtype, value.data_ptr() % 16 == 0))
            elif name in exempt or isinstance(value, float):
                continue
            elif name.isupper() or name in ("num_warps", "num_stages"):  # constants
                key.append((name, value))
            else:
                key.append((name, value == 1, value % 16 == 0))
        seen.add(tuple(key))
        return original(self, *args, grid=grid, warmup=warmup, **kwargs)

    InterpretedFunction.run = run
    try:
        yield seen
    finally:
        InterpretedFunction.run = original


@pytest.fixture(scope="module")
def watched(tiny_model_path):
    """An engine, and what it has had compiled since it was ready, or interpreted what it has launched."""
    watch = compiled_on_a_gpu if DEVICE.type == "cuda" else launches_seen
    with Engine(tiny_model_path, EngineConfig(backend="triton", **SETTINGS)) as engine, watch() as served:
        yield engine, served


@pytest.fixture(scope="module")
def engine(watched):
    return watched[0]


def prompts(count: int) -> list[Prompt]:
    rng = np.random.default_rng(3)
    return [Prompt(token_ids=rng.integers(0, 250, 1 + 9 * i % 40).tolist()) for i in range(count)]


def test_answers_are_those_of_the_reference(engine, tiny_model_path):
    """Prompts of many lengths at once: chunked prefill, decoding and mixtures."""
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=2)
    with Engine(tiny_model_path, EngineConfig(backend="reference", **SETTINGS)) as reference:
        for ours, theirs in zip(
            engine.generate(greedy, prompts(6)), reference.generate(greedy, prompts(6)), strict=True
        ):
            assert ours.token_ids == theirs.token_ids
            for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
                assert abs(a.logprob - b.logprob) < 1e-4
    engine.check_integrity()


def shaped(seed: int, **more) -> SamplingParams:
    return SamplingParams(temperature=0.9, seed=seed, max_tokens=4, ignore_eos=True, **more)


def test_drawn_tokens_are_those_of_the_reference(engine, tiny_model_path):
    """Seeds, filters, penalties, biases and minimum lengths in one batch, with the next step launched ahead and not."""
    params = [
        shaped(1, top_k=9, top_p=0.8, min_p=0.01),
        shaped(2, repetition_penalty=1.4, frequency_penalty=0.7, presence_penalty=-0.4, logprobs=3),
        shaped(3, logit_bias={7: 6.0, 8: 5.0}, min_tokens=4, frequency_penalty=1.5),
        shaped(4, prompt_logprobs=1, n=2),
    ]

    def run(engine):
        streams = [engine.generate_stream(p, prompt) for p, prompt in zip(params, prompts(4), strict=True)]
        for stream in streams:
            for _ in stream:
                continue
        return [[choice.token_ids for choice in stream.output.choices] for stream in streams]

    ours = run(engine)
    for backend, overlap in (("reference", False), ("triton", DEVICE.type == "cpu")):  # on a GPU, `engine` runs ahead
        with Engine(tiny_model_path, EngineConfig(backend=backend, overlap=overlap, **SETTINGS)) as other:
            assert run(other) == ours
    assert len({tuple(tokens) for answers in ours for tokens in answers}) == 5


def test_serving_compiles_nothing_that_warming_up_has_not(watched):
    """Nor have the tests before this one. On a GPU by Triton's own count; interpreted, by what it would make variants
    for."""
    engine, served = watched
    for temperature in (0.0, 0.9):
        params = SamplingParams(temperature=temperature, top_k=5, max_tokens=3, logprobs=1, ignore_eos=True)
        engine.generate(params, prompts(5))
    if DEVICE.type == "cuda":  # it has warmed up while it was built
        assert not served
        return
    launched = set(served)
    runner = engine._loop.call(lambda core: core).runner
    with launches_seen() as warm:
        for batch in warm_up_batches(runner.capacity):
            logits, _ = runner._forward_rows(batch)
            warm_up_sampling(runner.kernels, logits[:1], runner.rows.tokens)
    assert launched
    assert launched - warm == set()


@pytest.mark.parametrize("largest", [1, 3, 8, 64, 100, 256])
def test_the_ladder_wastes_at_most_half(largest):
    sizes = ladder(largest)
    assert sizes[-1] == largest
    assert sizes == sorted(set(sizes))
    assert all(b - a <= max(1, a) for a, b in pairwise(sizes))
    assert all(b - a <= b / 4 for a, b in pairwise(sizes) if a >= 8)


def test_a_padded_decode_step_gives_what_the_step_itself_gives():
    """DecodeGraphs; without a GPU, with steps that are carried out where CUDA would replay them."""
    core = build_core(SyntheticCheckpoint("tiny", DEVICE), EngineConfig(backend="triton", **SETTINGS))
    runner = core.runner
    runner.rows.tokens.zero_()  # as they are on a GPU
    for kv in runner.kv:
        kv.keys.normal_()
        kv.values.normal_()
    written = [kv.keys.clone() for kv in runner.kv]
    graphs = DecodeGraphs(
        runner._forward_rows,
        max_num_seqs=6,
        max_blocks=runner.rows.block_tables.shape[1],
        max_model_len=96,
        device=DEVICE,
        capture=CudaCapture(DEVICE) if DEVICE.type == "cuda" else run_once,
    )
    for kv, before in zip(runner.kv, written, strict=True):
        assert kv.keys.equal(before)
    for rows in (1, 3, 5, 6):
        batch = decode_batch(rows)
        core.runner.rows.tokens[batch.token_rows.to(DEVICE), batch.positions.to(DEVICE)] = batch.token_ids.to(DEVICE)
        assert graphs.fits(batch)
        logits, hidden = graphs.replay(batch)
        expected, expected_hidden = runner.model.forward(batch.to(DEVICE), runner.kv)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(hidden, expected_hidden, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="captures on a GPU; tests/engine/test_graphs.py does what it can")
def test_a_capture_outlives_what_another_thread_does():
    """Another engine that serves meanwhile allocates, and waits for its device."""
    found, kept = torch.zeros(8), []

    def serve():
        kept.append(torch.ones(2**26, device=DEVICE))  # a thread has its own default
        torch.cuda.current_stream().synchronize()

    def work():
        found.add_(1)
        other = threading.Thread(target=serve)
        other.start()
        other.join()

    replay = CudaCapture(DEVICE)(work)
    replay()
    torch.cuda.synchronize()
    assert found.tolist() == [2] * 8
    assert len(kept) == 2


def run_once(work):
    """What CudaCapture does to memory."""
    work()
    return work


def decode_batch(rows: int):
    """Sequences of different lengths, each in a block of its own."""
    lengths = torch.tensor([3 + 2 * i for i in range(rows)], dtype=torch.int32, device="cpu")
    order = torch.arange(rows, dtype=torch.int32, device="cpu")
    return Batch(
        token_ids=order + 5,
        token_rows=order,
        positions=lengths - 1,
        slot_mapping=order * 16 + lengths - 1,
        query_start_loc=torch.arange(rows + 1, dtype=torch.int32, device="cpu"),
        seq_lens=lengths,
        block_tables=order[:, None].repeat(1, 2),
        logits_indices=order,
        num_tokens=rows,
        num_seqs=rows,
        num_logits=rows,
        max_query_len=1,
        max_seq_len=int(lengths.max()),
    )


def test_a_device_without_a_gpu_is_a_clear_error(tiny_model_path, monkeypatch):
    monkeypatch.setattr(knobs.runtime, "interpret", False)  # as it is outside of tests
    with pytest.raises(ModelLoadError, match=REFUSAL):
        Engine(tiny_model_path, EngineConfig(backend="triton", device="cpu"))


def test_a_type_that_the_kernels_lack_is_a_clear_error(tiny_model_path):
    with pytest.raises(ModelLoadError, match="do not compute in float64; take dtype float32 or bfloat16"):
        Engine(tiny_model_path, EngineConfig(backend="triton", device="cpu", dtype="float64"))
