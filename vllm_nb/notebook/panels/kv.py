"""KV map: a cell a physical block; who holds it, what is shared, cached, just written; and what a block holds."""

from array import array
from math import ceil
from typing import Any

import traitlets

from vllm_nb.inspection.cells import SHARED, STORED, USED, WRITTEN, cells_of, changed_cells, details_of, update_cells
from vllm_nb.inspection.view import EngineView
from vllm_nb.notebook.panels.palette import series
from vllm_nb.notebook.panels.panel import Panel
from vllm_nb.notebook.panels.player import Player
from vllm_nb.notebook.panels.svg import Svg, table, text_width

MOST_SEQUENCES = 64  # that are listed
CHAIN = 8  # hashes of a chain that are shown
_WIDTH, _TOP = 760.0, 78.0


def _array(values: "array[int]") -> dict[str, Any]:
    """As it travels, in a buffer of its own."""
    return {"view": memoryview(values.tobytes()), "dtype": "uint32", "shape": [len(values)]}


def _all_cells(_: Any, panel: "KvPanel") -> dict[str, Any]:
    """The trait `cells` for a page that opens the panel: asked for seldom, so it is made then."""
    with panel.player.lock:
        return {"frame": panel.frame, **_array(panel.sent)}


class KvPanel(Panel):
    """block: the one whose content is shown. sequence: the one whose block table is drawn.

    The cells (inspection.cells) travel apart from the state: all of them when a page opens the panel, then those that
    have changed, as a message with the numbers of the blocks and their cells.
    """

    title = "KV cache"
    module = "kv.js"
    styles = ("kv.css",)

    cells = traitlets.Any().tag(sync=True, to_json=_all_cells)
    block = traitlets.Int(None, allow_none=True).tag(sync=True, setting=True)
    sequence = traitlets.Int(None, allow_none=True).tag(sync=True, setting=True)

    def __init__(self, player: Player):
        self.sent = cells_of(player.view)  # what the browser has, uint32 [num_blocks]
        self._told = 0
        super().__init__(player)

    @traitlets.validate("block")
    def _check_block(self, proposal: Any) -> int | None:
        block: int | None = proposal["value"]
        if block is not None and not 0 <= block < self.timeline.info.num_blocks:
            raise traitlets.TraitError(f"block must be from 0 to {self.timeline.info.num_blocks - 1}, not {block}")
        return block

    @traitlets.observe("block", "sequence")
    def _choose(self, _: Any) -> None:
        self.player.refresh(self)

    # Frames

    def show(self, player: Player, moved: bool) -> int:
        view, cells = player.view, self.sent[:]
        update_cells(cells, view, range(len(cells)) if moved else view.changed)
        view.changed = set()
        changed = changed_cells(self.sent, cells)
        self.sent = cells
        return super().show(player, moved) + self._send_cells(changed)

    def _send_cells(self, blocks: "array[int]") -> int:
        """Tell the browser of these cells. previous: the frame of the last such message, by which it sees a loss."""
        if not blocks:
            return 0
        values = array("I", [self.sent[block] for block in blocks])
        content = {"type": "cells", "frame": self.frame, "previous": self._told}
        self._told = self.frame
        self.send(content, [memoryview(blocks.tobytes()), memoryview(values.tobytes())])
        return 8 * len(blocks)

    def _receive(self, widget: Any, content: dict[str, Any], buffers: list[Any]) -> None:
        if content.get("type") == "cells":  # the browser has missed some
            with self.player.lock:
                self._send_cells(array("I", range(len(self.sent))))
        super()._receive(widget, content, buffers)

    # What is shown

    def look(self, view: EngineView) -> dict[str, Any]:
        counters = view.counters
        return {
            "step": view.step,
            "num_blocks": view.info.num_blocks,
            "block_size": view.info.block_size,
            "used": view.num_used,
            "cached_free": view.num_cached_free,
            "stored": len(view.stored),
            "shared": len(view.sharers),
            "evictions": counters.evictions,
            "preemptions": counters.preemptions,
            "prompt_tokens": counters.prompt_tokens,
            "cached_tokens": counters.cached_tokens,
            "sequences": [_listed(view, number) for number in view.running[:MOST_SEQUENCES]],
            "running": len(view.running),
            "waiting": len(view.waiting),
            "table": _table_of(view, self.sequence),
            "chosen": None if self.block is None else self._chosen(view, self.block),
        }

    def _chosen(self, view: EngineView, block: int) -> dict[str, Any]:
        details = details_of(view, block)
        chain = details["chain"]
        details["length"] = len(chain)
        return details | {"text": self.timeline.text_of(details["tokens"]), "chain": chain[:CHAIN]}

    def draw(self, state: dict[str, Any]) -> Svg:
        cells = cells_of(self.player.view)
        columns, side = layout(len(cells), _WIDTH - 24)
        rows = ceil(len(cells) / columns)
        picture = Svg(_WIDTH, _TOP + rows * side + 40, self.title, describe(state))
        x = 12.0
        for name, value in tiles(state):
            picture.text(x, 26, value, size=17, bold=True)
            picture.text(x, 42, name, size=11, fill="muted")
            x += text_width(name, 11) + 22
        picture.rect(12, _TOP, columns * side, rows * side, "surface")
        for start, stop in _runs(cells, columns):
            _draw_run(picture, cells[start], start, stop, columns, side)
        _draw_table(picture, state["table"], columns, side)
        _draw_legend(picture, _TOP + rows * side + 24)
        return picture

    def numbers(self, state: dict[str, Any]) -> str:
        return table("Numbers", ["", "now"], tiles(state)) + table(
            "Requests",
            ["sequence", "request", "tokens computed", "blocks"],
            [[number, name, computed, blocks] for number, name, computed, blocks in state["sequences"]],
        )


def _listed(view: EngineView, number: int) -> list[Any]:
    seq = view.sequences[number]
    return [number, f"{seq.request_id} [{seq.choice}]", seq.computed, len(seq.blocks)]


def _table_of(view: EngineView, sequence: int | None) -> list[int]:
    seq = view.sequences.get(sequence) if sequence is not None else None
    return [] if seq is None else seq.blocks


def tiles(state: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers beside the map: (name, value)."""
    total, prompt = state["num_blocks"], state["prompt_tokens"]
    rate = f"{state['cached_tokens'] / prompt:.1%}" if prompt else "–"
    return [
        (f"of {total:,} blocks in use", f"{state['used']:,}"),
        ("occupancy", f"{state['used'] / total:.1%}"),
        ("shared by several", f"{state['shared']:,}"),
        ("free, still cached", f"{state['cached_free']:,}"),
        ("prefix cache hit rate", rate),
        ("evictions", f"{state['evictions']:,}"),
    ]


def describe(state: dict[str, Any]) -> str:
    """The picture in words."""
    told = "; ".join(f"{value} {name}" for name, value in tiles(state))
    return f"KV cache after step {state['step']}: {told}; {state['running']} sequences run, {state['waiting']} wait."


def layout(count: int, width: float) -> tuple[int, int]:
    """Columns and side of a cell in pixels: `count` cells half as high as wide, or as small as can be seen."""
    side = 26
    while side > 4 and ceil(count / (width // side)) * side > width / 2:
        side -= 1
    return int(width // side), side


def _runs(cells: "array[int]", columns: int) -> list[tuple[int, int]]:
    """Neighbours in a row that look the same, drawn as one: a picture of 100,000 cells stays small."""
    runs, start = [], 0
    for block in range(1, len(cells) + 1):
        if block == len(cells) or block % columns == 0 or cells[block] != cells[start] or cells[block] & WRITTEN:
            if cells[start] & (USED | STORED):
                runs.append((start, block))
            start = block
    return runs


def _draw_run(picture: Svg, cell: int, start: int, stop: int, columns: int, side: int) -> None:
    x, y = 12 + start % columns * side, _TOP + start // columns * side
    role = series((cell >> 16) - 1)
    fill = picture.hatch(role) if cell & SHARED else role
    gap = 1 if side > 5 else 0
    written = "text" if cell & WRITTEN else None
    name = f"block {start}" if stop == start + 1 else f"blocks {start} to {stop - 1}"
    opacity = 1.0 if cell & USED else 0.3
    picture.rect(
        x,
        y,
        (stop - start) * side - gap,
        side - gap,
        fill,
        stroke=written,
        opacity=opacity,
        hint=f"{name}: {_words(cell)}",
    )


def _words(cell: int) -> str:
    kinds = [
        name
        for bit, name in ((SHARED, "shared"), (STORED, "in the prefix cache"), (WRITTEN, "just written"))
        if cell & bit
    ]
    return ", ".join(["in use" if cell & USED else "free", *kinds])


def _draw_table(picture: Svg, blocks: list[int], columns: int, side: int) -> None:
    points = [(12 + (b % columns + 0.5) * side, _TOP + (b // columns + 0.5) * side) for b in blocks]
    picture.polyline(points, "text", width=1.5)


def _draw_legend(picture: Svg, y: float) -> None:
    hatch = picture.hatch("series0")
    kinds = (("series0", 1.0, None, "in use, colour by request"), (hatch, 1.0, None, "shared prefix"),
             ("series0", 0.3, None, "free, still cached"), ("series0", 1.0, "text", "just written"))  # fmt: skip
    for place, (fill, opacity, stroke, words) in enumerate(kinds):
        x = 12 + place * 180
        picture.rect(x, y - 10, 12, 12, fill, stroke=stroke, opacity=opacity)
        picture.text(x + 18, y, words, size=11)
