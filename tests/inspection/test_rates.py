"""Rates and latencies are what an engine's requests measured."""

import pytest

from vllm_nb.api import Engine, Prompt
from vllm_nb.inspection.follow import LiveTimeline
from vllm_nb.inspection.history import History
from vllm_nb.inspection.rates import histogram, rates
from vllm_nb.sampling import SamplingParams


def test_latencies_are_those_of_the_answers(small_engine: Engine) -> None:
    timeline = LiveTimeline(small_engine)
    history = History(timeline.end)
    params = SamplingParams(max_tokens=9, ignore_eos=True, seed=3)
    outputs = small_engine.generate(params, [Prompt(text=text * 9) for text in ("one", "two", "three")])
    timeline.close()
    for event in timeline:
        history.apply(event)
    measured = sorted(output.timings.ttft for output in outputs)
    assert sorted(history.ttft.seconds) == pytest.approx(measured)
    assert len(history.itl.seconds) == 3 * 8
    spans = [output.timings.finished - output.timings.first_token for output in outputs]
    assert sum(history.tpot.seconds) == pytest.approx(sum(spans) / 8, rel=0.2, abs=0.01)  # answers are told later
    assert sum(history.itl.seconds) == pytest.approx(8 * sum(history.tpot.seconds))


def test_the_bound_is_what_reading_alone_would_take(small_engine: Engine) -> None:
    timeline = LiveTimeline(small_engine)
    history = History(timeline.end)
    small_engine.generate(SamplingParams(max_tokens=20, ignore_eos=True), Prompt(text="abcdefgh"))
    timeline.close()
    for event in timeline:
        history.apply(event)
    info = small_engine.info
    shown = rates(history, history.steps[-1], seconds=0, bins=10, read_rate=2e9)
    kv = info.kv_bytes / info.num_blocks / info.block_size
    prompt = next(iter(history.lanes.values())).prompt_len
    read = sum(info.step_weight_bytes + kv * (prompt + i) for i in range(1, 20))
    width = shown["seconds"] / 10
    bins = [(rate * width, bound) for rate, bound in zip(shown["decode"], shown["bound"], strict=True) if bound]
    assert sum(tokens for tokens, _ in bins) == pytest.approx(19, rel=1e-3)
    assert sum(tokens / bound for tokens, bound in bins) == pytest.approx(read / 2e9, rel=1e-2)
    assert info.weight_bytes - info.step_weight_bytes > 0  # the tiny model's embedding is not its head


def test_a_histogram_counts_all_and_its_percentiles_occurred() -> None:
    values = [0.001 * 1.1**i for i in range(60)]
    shown = histogram(values)
    assert sum(shown["counts"]) == shown["n"] == 60
    assert shown["edges"][0] == pytest.approx(values[0])
    assert shown["edges"][-1] == pytest.approx(values[-1])
    assert shown["p50"] == values[29]
    assert shown["p99"] == values[-1]
    assert histogram([0.5])["counts"] != []
    assert histogram([])["p50"] is None


def test_an_old_history_is_forgotten(monkeypatch: pytest.MonkeyPatch, small_engine: Engine) -> None:
    monkeypatch.setattr("vllm_nb.inspection.history.MOST_STEPS", 50)
    timeline = LiveTimeline(small_engine)
    history = History(timeline.end)
    for _ in range(6):
        small_engine.generate(SamplingParams(max_tokens=20, ignore_eos=True), Prompt(text="abc"))
    timeline.close()
    for event in timeline:
        history.apply(event)
    assert 40 <= len(history.steps) <= 50
    assert {len(column) for column in history.columns.values()} == {len(history.steps)}
    assert 2 <= len(history.lanes) <= 4
    assert history.itl.steps[0] >= history.steps[0]
