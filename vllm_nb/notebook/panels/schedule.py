"""Schedule: a lane a sequence, a column a step; below, the token budget and the phases of each step."""

from pathlib import Path
from typing import Any

import traitlets

from vllm_nb.inspection.histories import history_of
from vllm_nb.inspection.history import PHASES, History, Lane
from vllm_nb.inspection.view import EngineView
from vllm_nb.notebook.panels.charts import number
from vllm_nb.notebook.panels.panel import Panel
from vllm_nb.notebook.panels.svg import Svg, table
from vllm_nb.notebook.panels.svg import shortened as cut

COLUMNS = 72  # steps that are shown
MOST_LANES = 96
ROLES = {"prefill": "series1", "decode": "series0", "cached": "series2", "waiting": "series7", "preempted": "alert"}
PHASE_ROLES = dict(zip(PHASES, ("series3", "series4", "series7", "series5", "series6"), strict=True))
REASONS = {
    "budget": "the step's token budget is spent",
    "rows": "as many run as may",
    "blocks": "too few KV blocks are free",
    "leader": "a sibling computes their common prompt",
    "new": "came during the step",
}
_WIDTH, _LABELS, _LANE = 760.0, 128.0, 15.0
_APART = 110.0  # pixels from which the first and the last step have a label each
_LEAST = 2.0  # height of a bar that stands for few tokens of many


class SchedulePanel(Panel):
    """columns: how many steps are shown."""

    title = "Schedule"
    module = "schedule.js"
    styles = ("schedule.css",)

    columns = traitlets.Int(COLUMNS, min=8, max=240).tag(sync=True, setting=True)

    def look(self, view: EngineView) -> dict[str, Any]:
        return schedule(history_of(self.timeline), view.step, self.columns)

    def draw(self, state: dict[str, Any]) -> Svg:
        return draw(state)

    def numbers(self, state: dict[str, Any]) -> str:
        return numbers(state)

    def save(self, path: str | Path) -> Path:
        """As every panel, and for a name that ends in .json, all steps as a trace for ui.perfetto.dev."""
        if Path(path).suffix != ".json":
            return super().save(path)
        with self.player.lock:
            return self.timeline.to_chrome_trace(path)

    @traitlets.observe("columns")
    def _look_again(self, _: Any) -> None:
        self.player.refresh(self)


def schedule(history: History, step: int, columns: int = COLUMNS) -> dict[str, Any]:
    """The last steps up to `step`, and the lanes of whoever was there. Spans are [kind, first, last, tokens, note]."""
    last = history.index_of(step)
    first = max(0, last - columns)
    known = history.columns
    numbers = history.steps[first:last].tolist()
    lanes = history.lanes_between(numbers[0], numbers[-1]) if numbers else []
    shown = lanes[-MOST_LANES:]
    digits = max((len(str(lane.sequence)) for lane in shown), default=0)
    return {
        "columns": columns,
        "steps": numbers,
        "prefill": [int(n) for n in known["prefill"][first:last]],
        "decode": [int(n) for n in known["decode"][first:last]],
        "budget": [int(n) for n in known["budget"][first:last]],
        "phases": {name: [round(s * 1e3, 3) for s in known[name][first:last]] for name in PHASES},
        "lanes": [_lane(lane, digits, numbers[0], numbers[-1]) for lane in shown],
        "hidden": len(lanes) - len(shown),
    }


def _lane(lane: Lane, digits: int, first: int, last: int) -> dict[str, Any]:
    name = cut(lane.request_id.removeprefix("req-"), 8) + (f" #{lane.choice}" if lane.choice else "")
    spans = [
        [span.kind, max(span.first, first), min(span.last, last), span.tokens, span.note]
        for span in lane.spans
        if span.first <= last and span.last >= first
    ]
    number = str(lane.sequence).rjust(digits, "\N{NO-BREAK SPACE}")  # in a file, pictures lose other spaces
    return {"name": f"{number}  {name}", "prompt": lane.prompt_len, "spans": spans}


def draw(state: dict[str, Any]) -> Svg:
    """state: as `schedule` gives it."""
    lanes = state["lanes"]
    below = 52 + _LANE * max(len(lanes), 1)
    told = (
        f"steps {state['steps'][0]} to {state['steps'][-1]}, {len(lanes)} sequences" if state["steps"] else "no steps"
    )
    picture = Svg(_WIDTH, below + 200, "Schedule", told)
    picture.text(12, 20, "Schedule", size=14, bold=True)
    _legend(picture, 100, 20, {**ROLES, "finished": "text"})
    if not state["steps"]:
        picture.text(12, 52, "No step has been made yet.", fill="muted")
        return picture
    grid = _Columns(state)
    for i, lane in enumerate(lanes):
        _draw_lane(picture, grid, lane, 40 + i * _LANE)
    _draw_budget(picture, grid, state, below)
    _draw_phases(picture, grid, state, below + 92)
    if state["hidden"]:
        picture.text(_WIDTH - 12, 20, f"{state['hidden']} older ones not shown", size=10, fill="muted", anchor="end")
    return picture


class _Columns:
    """Where each step stands."""

    def __init__(self, state: dict[str, Any]):
        self._steps = state["steps"]
        self.width = (_WIDTH - _LABELS - 12) / state["columns"]

    def left(self, step: int) -> float:
        return _LABELS + (step - self._steps[0]) * self.width

    def right(self, step: int) -> float:
        return self.left(step) + self.width


def _draw_lane(picture: Svg, grid: _Columns, lane: dict[str, Any], y: float) -> None:
    picture.text(12, y + 11, lane["name"], size=10.5, mono=True, room=_LABELS - 16)
    high = _LANE - 3
    for kind, first, last, tokens, note in lane["spans"]:
        x, width = grid.left(first), grid.right(last) - grid.left(first)
        hint = describe(kind, first, last, tokens, note)
        if kind == "waiting":
            picture.line(x, y + high / 2, x + width, y + high / 2, ROLES[kind], width=1.5, dash="2 3")
        elif kind == "decode":
            picture.rect(x, y + 3, width, high - 6, ROLES[kind], hint=hint)
            picture.ticks(map(grid.left, range(first + 1, last + 1)), y + 3, high - 6, "page")
        elif kind == "prefill":
            picture.rect(x, y, width - 0.6, high, ROLES[kind], hint=hint)
        elif kind == "cached":
            picture.rect(x - 3.5, y, 3, high, picture.hatch(ROLES[kind]), stroke=ROLES[kind], hint=hint)
        elif kind == "preempted":
            picture.line(x, y, x + 7, y + high, ROLES[kind], width=2)
            picture.line(x, y + high, x + 7, y, ROLES[kind], width=2)
        else:
            picture.line(x + width, y, x + width, y + high, "text", width=2)


def _draw_budget(picture: Svg, grid: _Columns, state: dict[str, Any], y: float) -> None:
    high, most = 66.0, max(state["budget"])
    picture.text(12, y + 10, "Tokens of a step", size=11, bold=True)
    picture.text(12, y + 24, f"outline: budget, ≤ {most:,}", size=9, fill="muted", room=_LABELS - 16)
    for i, step in enumerate(state["steps"]):
        x, at = grid.left(step), y + high
        budget = state["budget"][i] / most * high
        picture.rect(x + 0.5, at - budget, grid.width - 1, budget, "surface", stroke="grid")
        for kind in ("decode", "prefill"):
            tall = max(state[kind][i] / most * high, _LEAST) if state[kind][i] else 0.0
            at -= tall
            hint = f"step {step}: {state[kind][i]} tokens of {kind}, budget {state['budget'][i]}"
            picture.rect(x + 0.5, at, grid.width - 1, tall, ROLES[kind], hint=hint)


def _draw_phases(picture: Svg, grid: _Columns, state: dict[str, Any], y: float) -> None:
    high = 60.0
    totals = [sum(times) for times in zip(*state["phases"].values(), strict=True)]
    most = max([*totals, 1e-9])
    picture.text(12, y + 10, "Time of a step", size=11, bold=True)
    picture.text(12, y + 24, f"≤ {number(most)} ms", size=9, fill="muted", room=_LABELS - 16)
    for i, step in enumerate(state["steps"]):
        at = y + high
        for name, role in PHASE_ROLES.items():
            tall = state["phases"][name][i] / most * high
            at -= tall
            picture.rect(
                grid.left(step) + 0.5, at, grid.width - 1, tall, role, hint=f"{name}: {state['phases'][name][i]} ms"
            )
    first, last = state["steps"][0], state["steps"][-1]
    left, right, below = grid.left(first), grid.right(last), y + high + 14
    if right - left >= _APART:
        picture.text(left, below, f"step {first}", size=10, fill="muted")
        picture.text(right, below, f"{last}", size=10, fill="muted", anchor="end")
    else:
        picture.text(left, below, f"step {first}" + (f" to {last}" if last > first else ""), size=10, fill="muted")
    _legend(picture, _LABELS, below + 20, PHASE_ROLES)


def _legend(picture: Svg, x: float, y: float, roles: dict[str, str]) -> None:
    for name, role in roles.items():
        picture.rect(x, y - 8, 10, 9, picture.hatch(role) if name in ("cached", "waiting") else role)
        picture.text(x + 14, y, name, size=10)
        x += 30 + 5.6 * len(name)


def describe(kind: str, first: int, last: int, tokens: int, note: str) -> str:
    """A span in words."""
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    words = {
        "waiting": f"waits: {REASONS.get(note, note)}",
        "cached": f"{tokens:,} tokens found in the prefix cache",
        "prefill": f"prefill of {tokens:,} tokens",
        "decode": f"decodes {tokens:,} tokens" if tokens > 1 else "decodes a token",
        "preempted": f"preempted, {tokens:,} computed tokens thrown away",
        "finished": f"finished ({note}) after {tokens:,} tokens",
    }
    return f"{steps}: {words[kind]}"


def numbers(state: dict[str, Any]) -> str:
    """HTML: every lane in words."""
    rows = [[lane["name"], "; ".join(describe(*span) for span in lane["spans"])] for lane in state["lanes"]]
    return table("In words", ["sequence", "what happened"], rows)
