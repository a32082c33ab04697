"""The tokens panel of an engine and of an answer: what it shows is what the engine gave, and forks become a tree."""

import math
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import pytest

from vllm_nb import replay
from vllm_nb.api import Engine, Prompt
from vllm_nb.config import EngineConfig
from vllm_nb.errors import RequestError
from vllm_nb.notebook.panels.tokens import TokensPanel
from vllm_nb.sampling import SamplingParams

SAMPLED = {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 4}


@pytest.fixture(scope="module")
def engine(tiny_model_path) -> Iterator[Engine]:
    with Engine(tiny_model_path, EngineConfig(num_kv_blocks=256, dtype="float32")) as engine:
        yield engine


@pytest.fixture
def panel(engine: Engine) -> Iterator[TokensPanel]:
    panel = engine.panel("tokens")
    yield panel
    panel.close()


def finished(panel: TokensPanel, count: int) -> dict:
    """The state once the panel's thread has heard that so many sequences have ended."""
    deadline = time.monotonic() + 30
    while len(panel.timeline.end.finished) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    panel.player.follow()
    return panel.now()


def test_it_shows_what_the_engine_gave(engine: Engine, panel: TokensPanel) -> None:
    params = SamplingParams(max_tokens=12, logprobs=5, ignore_eos=True, **SAMPLED)
    output = engine.generate(params, Prompt(text="Once upon a time there was"))
    state = finished(panel, 1)
    entries = output.choices[0].logprobs
    assert [row[1] for row in state["tokens"]] == output.token_ids
    for row, entry in zip(state["tokens"], entries, strict=True):
        text, _, p, rank, entropy, others = row
        assert p == pytest.approx(math.exp(entry.logprob), rel=1e-3)
        assert rank == entry.rank
        assert entropy == pytest.approx(entry.entropy / math.log(2), rel=1e-3)
        assert [other[0] for other in others] == [other.token_id for other in entry.top]
        assert text == panel.timeline.text_of([entry.token_id])
    assert state["sampling"]["top_k"] == 20
    ET.fromstring(str(panel.picture()))
    assert panel.html().count("<tr>") == 1 + 12


def test_forks_become_a_tree_and_cost_nothing(engine: Engine, panel: TokensPanel) -> None:
    params = SamplingParams(max_tokens=40, logprobs=5, temperature=0, ignore_eos=True)
    output = engine.generate(params, Prompt(text="Once upon a time there was a cache of blocks"))
    root = finished(panel, 1)
    other = next(a for a in root["tokens"][30][5] if a[0] != output.token_ids[30])
    panel.state = root
    panel.fork(30, other[0])
    first = finished(panel, 2)
    nodes = first["nodes"]
    assert (nodes[1]["parent"], nodes[1]["at"]) == (nodes[0]["id"], 30)
    assert [row[1] for row in first["tokens"][:31]] == [*output.token_ids[:30], other[0]]
    assert first["tokens"][30][2] == other[2]
    assert len(first["tokens"]) == 40
    sequence = panel.timeline.end.sequences[first["selected"]]
    assert sequence.cached >= (sequence.prompt_len - 1) // 16 * 16 - 16 > 0
    panel.state = first
    again = next(a for a in first["tokens"][35][5] if a[0] != first["tokens"][35][1])
    panel.fork(35, again[0])
    second = finished(panel, 3)
    assert (second["nodes"][2]["parent"], second["nodes"][2]["at"]) == (nodes[1]["id"], 35)
    assert [row[1] for row in second["tokens"][:35]] == [row[1] for row in first["tokens"][:35]]
    with pytest.raises(RequestError, match="no token 99"):
        panel.fork(99, 1)


def test_a_recording_has_the_tokens_and_no_forks(recording) -> None:
    panel = replay(recording).panel("tokens")
    state = panel.now()
    assert len(state["tokens"]) == 12
    assert not state["can_fork"]
    with pytest.raises(RequestError, match="a recording has no engine"):
        panel.fork(0, 1)
    panel.close()


def test_only_what_is_new_travels_and_the_messages_add_up(recording, monkeypatch) -> None:
    panel = replay(recording).panel("tokens")
    with panel.player.lock:  # its thread waits: the test makes the frames
        known: list = panel.get_state()["rows"]["rows"]
        sizes: list[int] = []

        def take(content: dict, buffers: object = None) -> None:
            nonlocal known
            known = [*known[: content["keep"]], *content["rows"]]
            sizes.append(len(content["rows"]))

        monkeypatch.setattr(panel, "send", take)
        for step in [*panel.timeline.steps, 3, panel.timeline.steps.stop - 1]:  # also backwards
            panel.player.seek(step)
            panel.show(panel.player, True)
            assert known == panel.now()["tokens"]
        assert "tokens" not in panel.state
        assert sizes[:13] == [0] + [1] * 12  # back to the beginning, then a token a message
        assert panel.get_state()["rows"]["rows"] == known  # what a page gets that is opened now
    panel.close()
