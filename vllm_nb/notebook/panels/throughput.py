"""Throughput: tokens a second beside what memory bandwidth allows, who runs and waits, KV use, latencies."""

from typing import Any

from vllm_nb.notebook.panels.charts import Line, duration, histogram, line_chart, number, within
from vllm_nb.notebook.panels.svg import Svg, table

LATENCIES = {"ttft": "Time to first token", "itl": "Between two tokens", "tpot": "Per token of a request"}
BINS = 100
_WIDTH = 760.0


def tiles(state: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers of now: those of the last bin."""

    def now(name: str) -> float:
        return state[name][-1] or 0

    share = state["bandwidth"]
    return [
        ("decode", f"{number(now('decode'))} tok/s"),
        ("prefill", f"{number(now('prefill'))} tok/s"),
        ("running", number(now("running"))),
        ("waiting", number(now("waiting"))),
        ("KV cache in use", f"{now('used'):.1%}"),
        ("of memory bandwidth", "not measured" if share is None else f"{share:.0%}"),
    ]


def draw(state: dict[str, Any]) -> Svg:
    """state: as inspection.rates.rates gives it."""
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
    line_chart(picture, 12, 62, _WIDTH - 24, 180, "Tokens a second", lines, state["seconds"])
    half = (_WIDTH - 36) / 2
    queues = [Line("running", "series2", state["running"]), Line("waiting", "series3", state["waiting"], "6 3")]
    line_chart(picture, 12, 252, half, 130, "Sequences", queues, state["seconds"])
    used = [Line("in use", "series4", [None if share is None else 100 * share for share in state["used"]])]
    line_chart(picture, 24 + half, 252, half, 130, "KV cache, %", used, state["seconds"])
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
