"""Throughput: tokens a second beside what memory bandwidth allows, who runs and waits, KV use, latencies."""

import threading
from contextlib import suppress
from typing import Any

import traitlets

from vllm_nb.errors import VllmNbError
from vllm_nb.inspection.follow import LiveTimeline
from vllm_nb.inspection.histories import history_of
from vllm_nb.inspection.rates import rates
from vllm_nb.inspection.view import EngineView
from vllm_nb.notebook.panels.charts import Line, duration, histogram, line_chart, number, within
from vllm_nb.notebook.panels.panel import Panel
from vllm_nb.notebook.panels.svg import Svg, table

LATENCIES = {"ttft": "Time to first token", "itl": "Between two tokens", "tpot": "Per token of a request"}
BINS = 100
_WIDTH = 760.0


class ThroughputPanel(Panel):
    """seconds: how much time is shown, 0 is all. read_rate: bytes a second that the engine's machine reads from memory;
    None until it was measured (`measure`, or the button)."""

    title = "Throughput"
    module = "throughput.js"

    seconds = traitlets.Float(30.0, min=0.0).tag(sync=True, setting=True)
    read_rate = traitlets.Float(None, allow_none=True).tag(setting=True)

    @traitlets.default("read_rate")
    def _measured_before(self) -> float | None:
        return self.timeline.info.read_rate

    def look(self, view: EngineView) -> dict[str, Any]:
        history = history_of(self.timeline)
        state = rates(history, view.step, seconds=self.seconds, bins=BINS, read_rate=self.read_rate)
        return state | {"now": self._now(view)}

    def _now(self, view: EngineView) -> dict[str, float] | None:
        """Where the engine stands still and the newest moment is shown, what is so since its last step: how long ago
        that was no event says. None: the end of the last step is the moment shown."""
        waits = view.paused or not (view.running or view.waiting)
        if not (waits and self.player.is_live and self.player.following):
            return None
        used = round(view.num_used / view.info.num_blocks, 4)
        return {"decode": 0, "prefill": 0, "running": len(view.running), "waiting": len(view.waiting), "used": used}

    def draw(self, state: dict[str, Any]) -> Svg:
        return draw(state)

    def numbers(self, state: dict[str, Any]) -> str:
        return numbers(state)

    def measure(self) -> float:
        """Let the engine measure its memory bandwidth, where that was not done before; bytes a second.

        Raises VllmNbError for a recording, EngineDeadError."""
        if self.read_rate is None:
            if not isinstance(self.timeline, LiveTimeline):
                raise VllmNbError("a recording has no engine that could measure; panel.set(read_rate=...) says it")
            self.read_rate = self.timeline.source.read_rate
        return float(self.read_rate or 0)

    @traitlets.observe("seconds", "read_rate")
    def _look_again(self, _: Any) -> None:
        self.player.refresh(self)

    def _receive(self, widget: Any, content: dict[str, Any], buffers: list[Any]) -> None:
        if content.get("type") == "measure":
            threading.Thread(target=self._measure, daemon=True).start()  # it takes a while, and messages go on
        super()._receive(widget, content, buffers)

    def _measure(self) -> None:
        with suppress(VllmNbError):  # the bar says that the engine is gone
            self.measure()


def tiles(state: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers of now: those of the last bin, where the engine does not stand still since."""

    def now(name: str) -> float:
        return (state.get("now") or {}).get(name, state[name][-1]) or 0

    share = state["bandwidth"]
    return [
        ("decode", f"{number(now('decode'))} tok/s"),
        ("prefill", f"{number(now('prefill'))} tok/s"),
        ("running", number(now("running"))),
        ("waiting", number(now("waiting"))),
        ("KV cache in use", f"{now('used'):.1%}"),
        ("of memory bandwidth", "unknown" if share is None else f"{share:.0%}"),
    ]


def draw(state: dict[str, Any]) -> Svg:
    """state: as inspection.rates.rates gives it, and "now" as ThroughputPanel.look adds it."""
    end = "last step" if state.get("now") else "now"
    told = "; ".join(f"{name}: {value}" for name, value in tiles(state))
    picture = Svg(_WIDTH, 540, "Throughput", told)
    for i, (name, value) in enumerate(tiles(state)):
        x = 12 + i * (_WIDTH - 12) / 6
        picture.text(x, 26, value, size=17, bold=True)
        picture.text(x, 42, name, size=11, fill="muted")
    bound = within(state["bound"], [state["decode"], state["prefill"]])
    lines = [
        Line("decode", "series0", state["decode"]),
        Line("prefill", "series1", state["prefill"], "6 3"),
        Line("decode at full bandwidth", "series7", bound, "2 3"),
    ]
    line_chart(picture, 12, 62, _WIDTH - 24, 180, "Tokens a second", lines, state["seconds"], end)
    half = (_WIDTH - 36) / 2
    queues = [Line("running", "series2", state["running"]), Line("waiting", "series3", state["waiting"], "6 3")]
    line_chart(picture, 12, 252, half, 130, "Sequences", queues, state["seconds"], end)
    used = [Line("in use", "series4", [None if share is None else 100 * share for share in state["used"]])]
    line_chart(picture, 24 + half, 252, half, 130, "KV cache, %", used, state["seconds"], end)
    third = (_WIDTH - 48) / 3
    for i, (name, title) in enumerate(LATENCIES.items()):
        x = 12 + i * (third + 12)
        histogram(picture, x, 396, third, 132, title, f"series{i}", state["latencies"][name])
    return picture


def numbers(state: dict[str, Any]) -> str:
    """HTML: what the picture shows, in numbers."""
    rows = [[name, value] for name, value in tiles(state)]
    for name, title in LATENCIES.items():
        data = state["latencies"][name]
        rows.append([f"{title} (p50, p90, p99)", ", ".join(duration(data[mark]) for mark in ("p50", "p90", "p99"))])
    return table("Numbers", ["", "now"], rows)
