"""What people call: a panel and a dashboard of a recording, a memory panel of a model alone."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

import vllm_nb
from vllm_nb.errors import ModelLoadError, RequestError, VllmNbError
from vllm_nb.inspection.history import History
from vllm_nb.notebook.panels import PANELS


def test_a_dashboard_has_all_panels_at_the_same_moment(timeline, tmp_path) -> None:
    dashboard = vllm_nb.dashboard(timeline)
    assert list(dashboard.panels) == list(PANELS)
    assert vllm_nb.panel("schedule", timeline) is dashboard.panels["schedule"]
    timeline.player.seek(7)
    assert dashboard.panels["schedule"].now()["steps"][-1] == 7
    root = ET.fromstring(dashboard.save(tmp_path / "all.svg").read_text())
    assert len(root.findall("{http://www.w3.org/2000/svg}g")) == len(PANELS)
    data, _ = dashboard._repr_mimebundle_()
    assert data["text/html"].count("<svg") == len(PANELS)
    with pytest.raises(VllmNbError, match=r"\.svg or \.html"):
        dashboard.save("x.png")


def test_the_schedule_is_saved_as_a_trace(timeline, tmp_path) -> None:
    text = timeline.panel("schedule").save(tmp_path / "trace.json").read_text()
    assert text == timeline.to_chrome_trace(tmp_path / "other.json").read_text()
    assert '"name": "step 1"' in text


def test_the_numbers_of_lanes_line_up(timeline, monkeypatch) -> None:
    between = History.lanes_between

    def later(self, *steps):
        return [replace(lane, sequence=number) for number, lane in enumerate(between(self, *steps), start=9)]

    monkeypatch.setattr(History, "lanes_between", later)
    names = [lane["name"] for lane in timeline.panel("schedule").now()["lanes"]]
    assert {int(name.split("  ")[0].strip()) for name in names} >= {9, 10}
    assert {name.index("  ") for name in names} == {2}


def test_a_models_memory_without_an_engine(tiny_model_path, tmp_path) -> None:
    panel = vllm_nb.panel("memory", model=str(tiny_model_path), config={"num_kv_blocks": 32}, sequences=7)
    assert panel.state["plan"]["num_blocks"] == 32
    assert panel.settings["sequences"] == 7
    assert panel.state["measured"] is None
    assert "7 sequences" in panel.save(tmp_path / "m.svg").read_text()
    with pytest.raises(ModelLoadError, match="There is no file"):
        vllm_nb.panel("memory", model="none.gguf")
    with pytest.raises(VllmNbError, match="only 'memory'"):
        vllm_nb.panel("schedule", model="smollm2")


def test_an_answer_without_alternatives_says_how_to_ask_for_them() -> None:
    with pytest.raises(RequestError, match="logprobs=5, or `%%vllm --logprobs 5`"):
        vllm_nb.Completion().panel()
