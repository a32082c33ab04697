"""Attention paging: for one step of one sequence its logical blocks, the block table, and the physical blocks read."""

from math import ceil, sqrt
from typing import Any

import traitlets

from vllm_nb.inspection.paging import Reads, reads_of
from vllm_nb.inspection.view import EngineView
from vllm_nb.notebook.panels.panel import Panel
from vllm_nb.notebook.panels.svg import Svg, table

ROWS = 24  # logical blocks that are listed; of more, the first few and the last
FIRST_ROWS = 4
_ROW = 18.0  # pixels
_TOP, _LEFT, _TABLE, _MEMORY, _SIDE = 52.0, 12.0, 380.0, 500.0, 260.0
_READERS = {"all": "all layers", "full": "layers without window", "none": "no layer: left of the window"}


class PagingPanel(Panel):
    """sequence: whose step is shown; None: the first of the batch that decodes."""

    title = "Attention paging"
    module = "paging.js"
    styles = ("paging.css",)

    sequence = traitlets.Int(None, allow_none=True).tag(sync=True, setting=True)

    @traitlets.observe("sequence")
    def _choose(self, _: Any) -> None:
        self.player.refresh(self)

    def look(self, view: EngineView) -> dict[str, Any]:
        chosen = self.sequence if self.sequence in view.batch else _first_decoding(view)
        reads = None if chosen is None else reads_of(view, chosen)
        state: dict[str, Any] = {
            "step": view.step,
            "num_blocks": view.info.num_blocks,
            "block_size": view.info.block_size,
            "window": view.info.sliding_window,
            "sequences": [[number, _name(view, number)] for number in view.batch],
            "sequence": chosen,
        }
        return state | (self._reads(view, reads) if reads is not None else {"rows": [], "blocks": []})

    def _reads(self, view: EngineView, reads: Reads) -> dict[str, Any]:
        size, count = view.info.block_size, len(reads.blocks)
        listed = range(count) if count <= ROWS else [*range(FIRST_ROWS), *range(count - ROWS + FIRST_ROWS, count)]
        readers = [reads.reads(logical, size) for logical in range(count)]
        rows = []
        for logical in listed:
            start, stop = logical * size, min((logical + 1) * size, reads.context)
            text = self.timeline.text_of(reads.sequence.tokens[start:stop])
            written = stop > reads.first
            rows.append([logical, reads.blocks[logical], start, stop, readers[logical], written, text])
        return {
            "name": _name(view, reads.sequence.sequence),
            "first": reads.first,
            "last": reads.last,
            "rows": rows,
            "blocks": reads.blocks,
            "unread": readers.count("none"),
            "full_only": readers.count("full"),
        }

    def draw(self, state: dict[str, Any]) -> Svg:
        height = _TOP + max(_ROW * (len(state["rows"]) + 1), _SIDE) + 16
        picture = Svg(_MEMORY + _SIDE + 12, height, self.title, describe(state))
        picture.text(_LEFT, 20, headline(state), size=13, bold=True)
        if not state["rows"]:
            return picture
        for x, words in ((_LEFT, "logical blocks"), (_TABLE, "block table"), (_MEMORY, "physical blocks")):
            picture.text(x, _TOP - 10, words, fill="muted", size=11)
        _draw_memory(picture, state)
        for place, row in enumerate(state["rows"]):
            _draw_row(picture, state, place, row)
        return picture

    def numbers(self, state: dict[str, Any]) -> str:
        rows = [
            [logical, block, f"{start} to {stop - 1}", _READERS[readers] + (", written" if written else ""), text]
            for logical, block, start, stop, readers, written, text in state["rows"]
        ]
        return table("Numbers", ["logical block", "physical block", "tokens", "read by", "text"], rows)


def headline(state: dict[str, Any]) -> str:
    if not state["rows"]:
        return f"Step {state['step']}: no sequence computes here"
    first, last = state["first"], state["last"]
    queries = f"token {last}" if first == last else f"tokens {first} to {last}"
    where = f"{last + 1} tokens in {len(state['blocks'])} blocks"
    verb = "attends" if first == last else "attend"
    return f"Step {state['step']}: {queries} of {state['name']} {verb} to {where}"


def describe(state: dict[str, Any]) -> str:
    """The picture in words."""
    words = f"{headline(state)}. Block table: {', '.join(map(str, state['blocks']))}."
    if state["window"] is not None and state["rows"]:
        words += f" Layers with a sliding window of {state['window']} tokens read "
        words += f"{len(state['blocks']) - state['unread'] - state['full_only']} of them."
    return words


def grid(num_blocks: int) -> tuple[int, float]:
    """Columns and cell size of a square that holds all physical blocks, row by row."""
    columns = ceil(sqrt(num_blocks))
    return columns, _SIDE / columns


def _first_decoding(view: EngineView) -> int | None:
    decoding = [number for number, count in view.batch.items() if count == 1]
    return min(decoding or view.batch, default=None)


def _name(view: EngineView, number: int) -> str:
    seq = view.sequences.get(number)
    return f"{number}" if seq is None else f"{seq.request_id} [{seq.choice}]"


def _center(state: dict[str, Any], block: int) -> tuple[float, float]:
    columns, cell = grid(state["num_blocks"])
    return _MEMORY + (block % columns + 0.5) * cell, _TOP + (block // columns + 0.5) * cell


def _draw_memory(picture: Svg, state: dict[str, Any]) -> None:
    columns, cell = grid(state["num_blocks"])
    rows = ceil(state["num_blocks"] / columns)
    picture.rect(_MEMORY, _TOP, columns * cell, rows * cell, "surface", stroke="grid")
    left_out = state["full_only"] + state["unread"]
    for logical, block in enumerate(state["blocks"]):
        x, y = _center(state, block)
        role = "series5" if logical < left_out else "series0"
        side = max(cell - 1, 1.5)
        picture.rect(x - side / 2, y - side / 2, side, side, role, hint=f"block {block}, logical {logical}")


def _draw_row(picture: Svg, state: dict[str, Any], place: int, row: list[Any]) -> None:
    logical, block, _, _, readers, written, text = row
    y = _TOP + place * _ROW
    role = "series0" if readers == "all" else "series5" if readers == "full" else "grid"
    if place and logical != state["rows"][place - 1][0] + 1:
        picture.text(_LEFT, y + 1, "⋮", fill="muted")
    picture.rect(_LEFT, y, _TABLE - _LEFT - 16, _ROW - 3, "surface", stroke="alert" if written else role)
    picture.text(_LEFT + 6, y + 11, str(logical), fill="muted", size=10)
    picture.text(_LEFT + 38, y + 11, text, size=10, mono=True, room=_TABLE - _LEFT - 64)
    picture.text(_TABLE, y + 11, f"{logical} → {block}", size=11)
    if readers != "none":
        picture.line(_TABLE + 76, y + 7, *_center(state, block), role, width=0.8)
