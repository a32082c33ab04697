"""Memory: weights, KV cache, activations and what is left; predicted before the load, measured after, and what if."""

import math
import threading
import time
from contextlib import suppress
from typing import Any

import traitlets

from vllm_nb.client.plan import plan_memory
from vllm_nb.errors import VllmNbError
from vllm_nb.inspection.follow import LiveTimeline
from vllm_nb.inspection.view import EngineView
from vllm_nb.notebook.panels.charts import size
from vllm_nb.notebook.panels.panel import Panel
from vllm_nb.notebook.panels.picture import Picture
from vllm_nb.notebook.panels.player import Player
from vllm_nb.notebook.panels.svg import Svg, table

PARTS = {  # in the order of the bar
    "others": ("others on this machine", "series7"),
    "runtime": ("Python, PyTorch, kernels", "series5"),
    "weights": ("weights", "series0"),
    "kv": ("KV cache", "series4"),
    "activations": ("activations", "series3"),
}
OWN = ("runtime", "weights", "kv", "activations")  # this engine's
TITLES = {part: title for part, (title, _) in PARTS.items()} | {"left": "left"}
BLOCK_SIZES = (16, 32, 64, 128, 256)
MOST_SEQUENCES = 256
_WIDTH = 760.0
_FRESH = 5.0  # seconds for which a measurement is shown before the next is asked for


class MemoryPicture(Picture):
    """What a model would take, before it is loaded. settings: of the what-if, see `settings_of`."""

    title = "Memory"
    module = "memory.js"
    styles = ("memory.css",)

    settings = traitlets.Dict().tag(sync=True, setting=True)

    @classmethod
    def of_model(cls, model: str, config: dict[str, Any], settings: dict[str, Any]) -> "MemoryPicture":
        """config: fields of EngineConfig; settings: of the what-if. Raises ModelLoadError, ValueError."""
        plan = plan_memory(model, **config)
        picture = cls()
        picture.settings = settings_of(plan) | settings
        picture.state = {"plan": plan, "measured": None, "used": None}
        return picture

    def draw(self, state: dict[str, Any]) -> Svg:
        return draw(state, self.settings)

    def numbers(self, state: dict[str, Any]) -> str:
        return numbers(state, self.settings)


class MemoryPanel(Panel, MemoryPicture):
    """The same for an engine that runs: predicted and measured, and how much of its KV cache is in use."""

    def __init__(self, player: Player):
        self._known = player.timeline.info.memory
        self._asked = time.monotonic()
        self._asking = False
        super().__init__(player)
        if self._known is not None:
            self.settings = settings_of(self._known["predicted"])

    def look(self, view: EngineView) -> dict[str, Any]:
        self._ask()
        known = self._known or {"predicted": None, "measured": None}
        used = view.num_used / view.info.num_blocks
        error = "" if self._known else "This recording does not say what memory its engine took."
        return {"plan": known["predicted"], "measured": known["measured"], "used": round(used, 4), "error": error}

    def _ask(self) -> None:
        """Have the engine measure again, now and then; what it says is shown when it comes."""
        timeline = self.timeline
        if isinstance(timeline, LiveTimeline) and not self._asking and time.monotonic() - self._asked > _FRESH:
            self._asking = True
            threading.Thread(target=self._measure, args=(timeline,), daemon=True).start()

    def _measure(self, timeline: LiveTimeline) -> None:
        with suppress(VllmNbError):  # the bar says that the engine is gone
            self._known = timeline.source.memory()
            self.player.refresh(self)
        self._asked, self._asking = time.monotonic(), False


def settings_of(plan: dict[str, Any]) -> dict[str, Any]:
    """What-if settings at which nothing is changed: as many full contexts as the KV cache holds."""
    tokens = plan["num_blocks"] * plan["block_size"]
    context = min(plan["max_model_len"], tokens)
    sequences = max(1, min(tokens // context, plan["max_num_seqs"], MOST_SEQUENCES))
    return {"context": context, "sequences": sequences, "dtype": plan["dtype"], "block_size": plan["block_size"]}


def what_if(plan: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Bytes by part when `sequences` of `context` tokens each are all in the cache; static/memory.js computes the same.

    plan: as engine.memory.MemoryPlan. "left": of the device, negative when it does not fit; "most": how many such
    sequences would fit; "wasted": tokens of room in last blocks that stay empty; "blocks": how many there are.
    """
    device, each = plan["device"], plan["activation_bytes"]
    context, sequences, block = settings["context"], settings["sequences"], settings["block_size"]
    per_sequence = math.ceil(context / block)
    kv_sequence = per_sequence * block * plan["kv_token_bytes"][settings["dtype"]]
    weights = plan["weight_bytes"][settings["dtype"]]
    tokens = max(plan["max_num_batched_tokens"], sequences)
    fixed = each["token"] * tokens + each["row"] * plan["logits_beside"] + each["context"] * context
    parts = {
        "others": device["others"],
        "runtime": device["runtime"],
        "weights": weights,
        "kv": sequences * kv_sequence,
        "activations": fixed + each["row"] * sequences,
    }
    room = device["total"] - device["others"] - device["runtime"] - weights - fixed
    return parts | {
        "left": device["total"] - sum(parts.values()),
        "most": max(0, room // (kv_sequence + each["row"])),
        "wasted": sequences * (per_sequence * block - context),
        "blocks": sequences * per_sequence,
    }


def bar(device: dict[str, Any], use: dict[str, int]) -> dict[str, int]:
    """Bytes by part of a prediction or a measurement."""
    parts = {"others": device["others"], "runtime": device["runtime"], **use}
    return parts | {"left": device["total"] - sum(parts.values())}


def bars(state: dict[str, Any], settings: dict[str, Any]) -> list[tuple[str, dict[str, int]]]:
    """Name and parts of each bar that is shown."""
    plan, measured = state["plan"], state["measured"]
    found = [("predicted", bar(plan["device"], plan["use"]))]
    if measured is not None:
        found.append(("measured", bar(measured["device"], measured["use"])))
    return [*found, ("what if", what_if(plan, settings))]


def draw(state: dict[str, Any], settings: dict[str, Any]) -> Svg:
    """state: plan, measured (None before the load), used (share of the KV blocks, or None), and without a plan, why."""
    if state["plan"] is None:
        picture = Svg(_WIDTH, 40, "Memory", state["error"])
        picture.text(12, 24, state["error"], fill="muted")
        return picture
    shown, device = bars(state, settings), state["plan"]["device"]
    told = "; ".join(f"{name}: {_words(parts)}" for name, parts in shown)
    picture = Svg(_WIDTH, 70 + 62 * len(shown) + 19 * (len(TITLES) + 1), f"Memory of {state['plan']['model']}", told)
    picture.text(12, 22, f"Memory of {state['plan']['model']}", size=14, bold=True)
    picture.text(_WIDTH - 12, 22, f"{device['name']}, {size(device['total'])}", size=11, fill="muted", anchor="end")
    longest = max(sum(parts[part] for part in OWN) for _, parts in shown)
    for i, (name, parts) in enumerate(shown):
        _draw_bar(
            picture, name, parts, device["total"], longest, 34 + 62 * i, state["used"] if name == "measured" else None
        )
    words = (
        f"what if: {settings['sequences']:,} sequences of {settings['context']:,} tokens, {settings['dtype']}, "
        f"blocks of {settings['block_size']}; {what_if(state['plan'], settings)['most']:,} such sequences would fit"
    )
    y = 34.0 + 62 * len(shown)
    picture.text(12, y + 12, words, size=11, fill="muted")
    _draw_numbers(picture, shown, y + 34)
    return picture


def _draw_bar(
    picture: Svg, name: str, parts: dict[str, int], total: int, longest: int, y: float, used: float | None
) -> None:
    """What the engine takes, to a scale that all bars share; below, a thin bar of the whole device."""
    room, left = _WIDTH - 24, parts["left"]
    verdict = f"{size(left)} left" if left >= 0 else f"{size(-left)} too much"
    picture.text(12, y + 10, name, size=12, bold=True)
    picture.text(
        _WIDTH - 12, y + 10, verdict, size=12, anchor="end", fill="text" if left >= 0 else "alert", bold=left < 0
    )
    x = 12.0
    for part in OWN:
        width = parts[part] / longest * room
        picture.rect(x, y + 16, width, 22, PARTS[part][1], hint=f"{TITLES[part]}: {size(parts[part])}")
        if part == "kv" and used is not None:
            picture.rect(x, y + 33, width * used, 5, "text", hint=f"{used:.1%} of the KV cache in use")
        x += width
    if left < 0:
        end = 12 + (total - parts["others"]) / longest * room
        picture.line(end, y + 12, end, y + 42, "alert", width=2)
    whole = room / (total - min(left, 0))
    own = sum(parts[part] for part in OWN)
    picture.rect(12, y + 42, room, 6, "surface", stroke="grid")
    picture.rect(12, y + 42, parts["others"] * whole, 6, PARTS["others"][1], hint=f"others: {size(parts['others'])}")
    picture.rect(12 + parts["others"] * whole, y + 42, own * whole, 6, "text", hint=f"this engine: {size(own)}")


def _draw_numbers(picture: Svg, shown: list[tuple[str, dict[str, int]]], y: float) -> None:
    for column, (name, _) in enumerate(shown):
        picture.text(330 + 130 * column, y, name, size=11, fill="muted", anchor="end")
    for row, (part, title) in enumerate(TITLES.items(), 1):
        if part in PARTS:
            picture.rect(12, y + 19 * row - 9, 10, 10, PARTS[part][1])
        picture.text(28, y + 19 * row, title, size=11.5)
        for column, (_, parts) in enumerate(shown):
            fill = "alert" if parts[part] < 0 else "text"
            picture.text(330 + 130 * column, y + 19 * row, size(parts[part]), size=11.5, anchor="end", fill=fill)


def numbers(state: dict[str, Any], settings: dict[str, Any]) -> str:
    """HTML: the bars in numbers."""
    shown = bars(state, settings) if state["plan"] else []
    rows = [[title, *(size(parts[part]) for _, parts in shown)] for part, title in TITLES.items()]
    return table("Numbers", ["", *(name for name, _ in shown)], rows)


def _words(parts: dict[str, int]) -> str:
    return ", ".join(f"{title} {size(parts[part])}" for part, title in TITLES.items())
