"""The public API on SmolLM2 itself."""

import asyncio
import gc
import threading
import weakref

import pytest
import torch

from vllm_nb.api import EngineBuilder, Prompt
from vllm_nb.errors import EngineDeadError, GenerationError, ModelLoadError, RequestError
from vllm_nb.events import StepDone
from vllm_nb.messages import ChatMessage, TextPart
from vllm_nb.sampling import SamplingParams
from vllm_nb.weights.hub import ModelRepo

GREEDY = SamplingParams(temperature=0, max_tokens=24)
CAPITAL = [ChatMessage("user", "What is the capital of France?")]
LONG = Prompt(text="The history of computing began long ago, when people first counted with stones. " * 40)


@pytest.fixture(scope="module")
def engine(smollm2_path):
    builder = EngineBuilder(ModelRepo.model_file(str(smollm2_path))).without_flash_attn()
    with builder.with_config(num_kv_blocks=256, max_num_seqs=8).build() as engine:
        yield engine
        assert_all_free(engine)


def assert_all_free(engine):
    engine.check_integrity()
    blocks = engine.stats()["kv_blocks"]
    assert blocks["used"] == 0
    assert blocks["free"] == blocks["total"]


@pytest.fixture(scope="module")
def transformers_model(smollm2_path, quick_gguf):
    from transformers import AutoModelForCausalLM

    folder, name = smollm2_path.parent, smollm2_path.name
    with quick_gguf():
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)


def test_answers_a_question(engine):
    output = engine.generate(GREEDY, CAPITAL)
    assert "Paris" in output.decode_output
    assert output.finish_reason in ("stop", "length")
    assert output.usage.completion_tokens == len(output.token_ids) == output.decoded_length
    assert output.prompt_length == len(engine.encode(CAPITAL))
    timings = output.timings
    assert timings.arrived <= timings.scheduled <= timings.first_token <= timings.finished
    assert timings.ttft > 0


def test_messages_in_every_form_mean_the_same(engine):
    forms = [
        CAPITAL,
        "What is the capital of France?",
        {"role": "user", "content": "What is the capital of France?"},
        [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}],
        [ChatMessage("user", [TextPart("What is the capital "), "of France?"])],
    ]
    assert len({tuple(engine.encode(form)) for form in forms}) == 1


def test_a_list_of_conversations_comes_back_in_order(engine):
    questions = ["Name a fruit.", "What is 2 + 2?", "What is the capital of France?"]
    together = engine.generate(GREEDY, questions)
    assert [o.decode_output for o in together] == [engine.generate(GREEDY, q).decode_output for q in questions]


def test_a_stream_is_the_whole_in_pieces(engine):
    whole = engine.generate(GREEDY, CAPITAL)
    with engine.generate_stream(GREEDY, CAPITAL) as stream:
        items = list(stream)
    assert "".join(item.text for item in items) == whole.decode_output == stream.output.decode_output
    assert [i for item in items for i in item.token_ids] == whole.token_ids
    assert [item.finish_reason for item in items[:-1]] == [None] * (len(items) - 1)
    assert items[-1].usage.prompt_tokens == whole.prompt_length
    assert items[-1].timings.finished


def test_cancel_frees_the_blocks_and_keeps_the_text(engine):
    stream = engine.generate_stream(SamplingParams(temperature=0, ignore_eos=True), CAPITAL)
    first = [next(stream) for _ in range(5)]
    stream.cancel()
    rest = list(stream)
    assert rest[-1].finish_reason == "abort"
    assert stream.output.decode_output.startswith("".join(item.text for item in first))
    assert_all_free(engine)


def test_a_stream_left_by_break_ends_in_the_engine(engine):
    for _ in engine.generate_stream(SamplingParams(temperature=0, ignore_eos=True), CAPITAL):
        break
    assert_all_free(engine)


def test_engines_of_one_process_do_not_mix(smollm2_path):
    builder = EngineBuilder(ModelRepo.model_file(str(smollm2_path))).with_config(num_kv_blocks=32, max_model_len=512)
    warm = SamplingParams(temperature=1.5, seed=3, max_tokens=30, ignore_eos=True)
    with builder.build() as one, builder.build() as other:
        alone = one.generate(warm, CAPITAL).token_ids, other.generate(GREEDY, CAPITAL).token_ids
        for _ in range(4):
            streams = [one.generate_stream(warm, CAPITAL), other.generate_stream(GREEDY, CAPITAL)]
            together = tuple([i for item in stream for i in item.token_ids] for stream in streams)
            assert together == alone


def test_abort_by_id_ends_a_queued_or_running_request(engine):
    stream = engine.generate_stream(SamplingParams(ignore_eos=True), LONG)
    engine.abort(stream.request_id)
    assert list(stream)[-1].finish_reason == "abort"
    engine.abort("no such request")
    assert_all_free(engine)


def test_the_same_seed_gives_the_same_text_in_any_company(engine):
    params = SamplingParams(temperature=1.2, top_p=0.95, seed=7, max_tokens=20)
    alone = engine.generate(params, CAPITAL).decode_output
    company = [engine.generate_stream(SamplingParams(temperature=1, max_tokens=40), f"Count to {i}") for i in range(5)]
    assert engine.generate(params, CAPITAL).decode_output == alone
    other = engine.generate(SamplingParams(temperature=1.2, top_p=0.95, seed=8, max_tokens=20), CAPITAL)
    assert other.decode_output != alone
    for stream in company:
        stream.cancel()


def test_n_answers_differ_and_share_their_prompt(engine):
    steps = []
    unsubscribe = engine.subscribe(lambda e: steps.append(e) if isinstance(e, StepDone) else None)
    output = engine.generate(SamplingParams(n=3, temperature=1.5, seed=1, max_tokens=8), LONG)
    unsubscribe()
    assert len({choice.text for choice in output.choices}) == 3
    assert output.usage.completion_tokens == sum(len(choice.token_ids) for choice in output.choices)
    prefilled = sum(n for step in steps for n in step.num_tokens if n > 1)
    assert prefilled < output.prompt_length + 2 * 16


def test_stop_strings_end_the_text_before_them(engine):
    whole = engine.generate(GREEDY, CAPITAL).decode_output
    stop = whole[8:13]
    output = engine.generate(SamplingParams(temperature=0, max_tokens=24, stop=stop), CAPITAL)
    assert output.decode_output == whole[: whole.index(stop)]
    assert (output.finish_reason, output.choices[0].stop_reason) == ("stop", stop)
    assert_all_free(engine)


def test_stop_token_ids_and_ignore_eos(engine):
    ids = engine.generate(GREEDY, CAPITAL).token_ids
    output = engine.generate(SamplingParams(temperature=0, stop_token_ids=[ids[3]], max_tokens=24), CAPITAL)
    assert output.token_ids == ids[:4]
    assert output.choices[0].stop_reason == ids[3]
    endless = engine.generate(SamplingParams(temperature=0, ignore_eos=True, max_tokens=64), CAPITAL)
    assert (len(endless.token_ids), endless.finish_reason) == (64, "length")


def test_max_tokens_is_clipped_to_the_context(smollm2_path):
    builder = EngineBuilder(ModelRepo.model_file(str(smollm2_path))).without_flash_attn()
    with builder.with_config(max_model_len=48, num_kv_blocks=8).build() as engine:
        output = engine.generate(SamplingParams(max_tokens=1000, ignore_eos=True), Prompt(token_ids=[1] * 30))
        assert (len(output.token_ids), output.finish_reason) == (18, "length")
        at_most = "the prompt has 48 tokens and this engine takes at most 47 and one to answer"
        with pytest.raises(
            RequestError, match=f"{at_most}; shorten it, or start the engine with a larger max_model_len"
        ):
            engine.generate(None, Prompt(token_ids=[1] * 48))


def test_a_second_identical_prompt_comes_from_the_cache(engine):
    prompt = Prompt(token_ids=engine.encode(LONG)[:512])
    params = SamplingParams(temperature=0, max_tokens=4)
    first = engine.generate(params, prompt)
    second = engine.generate(params, prompt)
    assert second.usage.prompt_tokens - second.usage.cached_tokens <= 16
    assert second.token_ids == first.token_ids
    assert engine.get_num_cached_tokens() >= 496
    assert engine.get_available_kv_tokens() == 256 * 16


def test_logprobs_are_those_of_transformers(engine, transformers_model):
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=3, prompt_logprobs=2, repetition_penalty=1.3)
    output = engine.generate(params, CAPITAL)
    ids = torch.tensor([output.prompt_token_ids + output.token_ids])
    with torch.inference_mode():
        expected = transformers_model(ids).logits[0].log_softmax(-1)
    start = output.prompt_length
    for i, entry in enumerate(output.logprobs):
        row = expected[start + i - 1]
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=2e-3)
        assert [t.token_id for t in entry.top] == row.topk(3).indices.tolist()
        assert entry.rank == 1 + int((row > row[entry.token_id]).sum())
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == start
    for i, entry in enumerate(output.prompt_logprobs[1:], start=1):
        assert entry.token_id == output.prompt_token_ids[i]
        assert entry.logprob == pytest.approx(float(expected[i - 1, entry.token_id]), abs=2e-3)
        assert len(entry.top) == 2


def test_prompt_logprobs_of_a_chunked_prompt(engine):
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    prompt = Prompt(token_ids=engine.encode(LONG)[:200])
    output = engine.generate(params, prompt)
    assert [e.token_id for e in output.prompt_logprobs[1:]] == list(prompt.token_ids[1:])
    assert all(e.logprob <= 0 for e in output.prompt_logprobs[1:])


def test_async_streams_share_one_loop(engine):
    async def ask(question):
        stream = await engine.agenerate_stream(GREEDY, question)
        return "".join([item.text async for item in stream])

    async def main():
        return await asyncio.gather(*(ask(q) for q in ("Name a fruit.", "What is the capital of France?")))

    assert asyncio.run(main())[1] == engine.generate(GREEDY, CAPITAL).decode_output


def test_a_cancelled_task_ends_its_request(engine):
    async def main():
        stream = await engine.agenerate_stream(SamplingParams(ignore_eos=True), CAPITAL)
        started = asyncio.Event()

        async def read():
            async for _ in stream:
                started.set()

        task = asyncio.create_task(read())
        await started.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert_all_free(engine)


def test_a_closed_event_loop_does_not_hurt_the_engine(engine):
    async def main():
        await engine.agenerate_stream(SamplingParams(temperature=0, max_tokens=20), CAPITAL)

    asyncio.run(main())  # ends at once, with the request still running
    assert "Paris" in engine.generate(GREEDY, CAPITAL).decode_output


def test_params_and_prompts_of_a_wrong_type(engine):
    for generate in (engine.generate, engine.generate_stream):
        with pytest.raises(TypeError, match=r"params must be SamplingParams\(...\), or None .*, not {'max_tokens': 3}"):
            generate({"max_tokens": 3}, "Hello")
    with pytest.raises(RequestError, match="the text of a Prompt must be a text, not 5"):
        Prompt(text=5)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        (None, "messages must be a text, a message or a list of messages, not None"),
        ([{"role": "wizard", "content": "Hi"}], r"unknown role 'wizard' in a message; use one of system"),
        ([{"role": "user"}], "a message lacks content"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "unknown message part"),
        ([{"role": "user", "content": {"a": 1}}], "content of the user message must be text or parts"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x.png"}]}], "images need a vision model"),
        (Prompt(token_ids=["a"]), "token id 'a' in the prompt is outside the vocabulary"),
        (Prompt(token_ids=[10**6]), r"token id 1000000 in the prompt is outside the vocabulary of 49,152"),
        (Prompt(token_ids=[]), "the prompt is empty"),
        (Prompt(text="hello " * 9000), r"the prompt has [\d,]+ tokens and this engine takes at most"),
    ],
)
def test_bad_requests_get_one_clear_error_and_others_are_served(engine, messages, message):
    stream = engine.generate_stream(GREEDY, CAPITAL)
    with pytest.raises(RequestError, match=message):
        engine.generate(GREEDY, messages)
    assert "Paris" in "".join(item.text for item in stream)


def test_tokens_outside_the_vocabulary_are_refused(engine):
    with pytest.raises(RequestError, match="logit_bias names token 70000, outside the vocabulary"):
        engine.generate(SamplingParams(logit_bias={70000: 1}), "Hi")


def test_a_failing_request_in_a_list_keeps_the_others(engine, monkeypatch):
    loop_core = engine._loop._core
    sampler = loop_core.sampler
    poison = engine.encode("poison")

    @torch.inference_mode()
    def poisoned(logits, plan, rows):
        for row, seq in zip(rows, plan.seqs, strict=True):
            if seq.prompt_len == len(poison) and seq.tokens[: len(poison)].tolist() == poison:
                logits[row] = torch.nan
        return sampler(logits, plan, rows)

    monkeypatch.setattr(loop_core, "sampler", poisoned)
    good, bad = engine.generate(GREEDY, ["What is the capital of France?", "poison"])
    assert "Paris" in good.decode_output
    assert "NaN logits" in bad.error
    assert bad.finish_reason == "error"
    with pytest.raises(GenerationError, match="NaN logits"):
        engine.generate(GREEDY, "poison")
    assert_all_free(engine)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda b: b.with_isq("q4k"), "quantising while loading"),
        (lambda b: b.with_fp8_kvcache(), "fp8 KV cache is not built yet"),
        (lambda b: b.with_multirank("0,1"), r"several ranks \(0,1\) are not built yet"),
    ],
)
def test_what_is_not_built_says_so(build, message):
    with pytest.raises(NotImplementedError, match=message):
        build(EngineBuilder("smollm2"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_num_seqs": 0}, r"max_num_seqs must be a whole number from 1 to 4,096, not 0"),
        ({"max_num_seqs": 64.0}, r"max_num_seqs must be a whole number from 1 to 4,096, not 64.0"),
        ({"prefix_cache": "false"}, "prefix_cache must be True or False, not 'false'"),
        ({"prefix_cache": None}, "prefix_cache must be True or False, not None"),
        ({"overlap": "no"}, "overlap must be True or False, not 'no'"),
        ({"tool_parser": 3}, "tool_parser must be a parser's name, not 3"),
        ({"kv_fraction": 2}, r"kv_fraction must be a number from 0.01 to 0.95, not 2"),
        ({"dtype": "int8"}, "dtype must be one of auto, float32"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 8}, "must be at least max_num_seqs"),
        ({"colour": 1}, "unknown engine setting 'colour'"),
        ({"lora": "a=b"}, "lora: LoRA adapters are not built yet"),
    ],
)
def test_bad_settings_name_field_value_and_range(settings, message):
    with pytest.raises(ValueError, match=message):
        EngineBuilder("smollm2").with_config(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_len": 10**6}, r"max_model_len 1,000,000 is more than the 8,192 tokens this model was made for"),
        ({"max_model_len": 64, "num_kv_blocks": 2}, r"max_model_len 64 does not fit the KV cache of 32 tokens"),
        ({"device": "cpu", "block_size": 7}, "block_size must be a multiple of 16 on a CPU, not 7"),
        ({"backend": "cpu", "dtype": "float16"}, "backend 'cpu' does not compute in float16: take dtype auto, float32"),
        ({"device": "cuda"}, "device 'cuda' is not available here: .*; install .*; or use one that is: cpu"),
        (
            {"device": "mps"},
            "device 'mps' is not available here: it needs a Mac with Apple silicon; or use one that is: ",
        ),
    ],
)
def test_settings_the_model_or_machine_cannot_serve(smollm2_path, settings, message):
    if settings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ModelLoadError, match=message):
        EngineBuilder(ModelRepo.model_file(str(smollm2_path))).with_config(**settings).build()


def test_yarn_stretches_the_context(smollm2_path):
    builder = EngineBuilder(ModelRepo.model_file(str(smollm2_path))).without_flash_attn()
    with builder.with_yarn_scaling_factor(2.0).with_config(num_kv_blocks=1024).build() as engine:
        assert engine.max_model_len == 16384
        assert engine.generate(GREEDY, CAPITAL).decode_output


def test_a_dead_engine_says_why_to_everybody(smollm2_path, monkeypatch):
    builder = EngineBuilder(ModelRepo.model_file(str(smollm2_path))).without_flash_attn()
    engine = builder.with_config(num_kv_blocks=32).build()
    stream = engine.generate_stream(SamplingParams(ignore_eos=True), "Hi")
    next(stream)

    def broken(*_):
        raise RuntimeError("books do not add up")

    monkeypatch.setattr(engine._loop._core.scheduler, "update", broken)
    with pytest.raises(EngineDeadError, match="books do not add up"):
        list(stream)
    with pytest.raises(EngineDeadError, match="books do not add up"):
        engine.generate(GREEDY, "Hi")
    assert isinstance(engine.failure, RuntimeError)
    engine.close()


def test_close_ends_streams_and_frees_everything(smollm2_path):
    builder = EngineBuilder(ModelRepo.model_file(str(smollm2_path))).without_flash_attn()
    engine = builder.with_config(num_kv_blocks=32).build()
    core = weakref.ref(engine._loop._core)
    stream = engine.generate_stream(SamplingParams(ignore_eos=True), "Hi")
    next(stream)
    engine.close()
    engine.close()
    assert list(stream)[-1].finish_reason == "abort"
    with pytest.raises(EngineDeadError, match="the engine is closed"):
        engine.generate(GREEDY, "Hi")
    assert not any(t.name == "vllm-nb-engine" and t is engine._loop._thread for t in threading.enumerate())
    gc.collect()
    assert core() is None, "weights and cache outlive close()"
