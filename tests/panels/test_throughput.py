"""What the throughput panel calls "now": of an engine that stands still, and of a moment that is replayed."""

import pytest

from vllm_nb.api import Engine
from vllm_nb.config import EngineConfig
from vllm_nb.notebook.panels.throughput import tiles
from vllm_nb.sampling import SamplingParams

PARAMS = SamplingParams(max_tokens=12, ignore_eos=True, temperature=0)
RATES = "decode", "prefill", "running", "waiting"


@pytest.fixture
def engine(tiny_model_path):
    with Engine(tiny_model_path, EngineConfig(num_kv_blocks=24, max_num_seqs=1, dtype="float32")) as engine:
        yield engine


@pytest.fixture
def panel(engine):
    panel = engine.panel("throughput")
    yield panel
    panel.close()


def values(state):
    return [dict(tiles(state))[name].removesuffix(" tok/s") for name in RATES]


def test_an_idle_engine_has_no_rate_and_its_last_step_is_not_now(engine, panel):
    engine.generate(PARAMS, "Hello")
    panel.timeline.close()  # when all that has happened is known
    panel.player.follow()
    state = panel.now()
    assert values(state) == ["0", "0", "0", "0"]
    assert state["decode"][-1] > 0
    assert "last step" in str(panel.draw(state))

    panel.player.seek(panel.player.view.step)
    moment = panel.now()
    assert values(moment)[0] != "0"
    assert "last step" not in str(panel.draw(moment))


def test_a_paused_engine_has_no_rate_though_sequences_wait(engine, panel):
    engine.pause()
    streams = [engine.generate_stream(PARAMS, "Hello") for _ in range(2)]
    engine.step(3)
    panel.timeline.close()
    panel.player.follow()
    assert values(panel.now()) == ["0", "0", "1", "1"]
    for stream in streams:
        stream.cancel()
    engine.resume()


def test_a_replay_shows_the_rates_of_its_moment(timeline):
    assert timeline.panel("throughput").now()["now"] is None
