"""Tokens: text coloured by how likely each token was, its alternatives and what cut them, and forks as a tree."""

import json
import threading
from collections.abc import Sequence
from typing import Any

import traitlets

from vllm_nb.errors import RequestError, VllmNbError
from vllm_nb.inspection.follow import LiveTimeline
from vllm_nb.inspection.view import EngineView, SequenceView
from vllm_nb.notebook.panels.branches import Branch, branches_of
from vllm_nb.notebook.panels.panel import Panel
from vllm_nb.notebook.panels.player import Player
from vllm_nb.notebook.panels.svg import MONOSPACE, Svg, shortened, table
from vllm_nb.notebook.panels.token_rows import ALTERNATIVES, Row, TokenRows

MOST_BRANCHES = 24
LONGEST_FORK = 256  # tokens
_WIDTH, _SIZE, _LINE = 760.0, 13.0, 22.0
_COLUMN = _SIZE * MONOSPACE  # of a monospaced character


def _all_rows(_: Any, panel: "TokensPanel") -> dict[str, Any]:
    """The trait `rows` for a page that opens the panel."""
    with panel.player.lock:
        return {"frame": panel.frame, "rows": panel.sent}


class TokensPanel(Panel):
    """selected: the sequence whose text is shown; None: the newest that was asked for with logprobs.

    The rows of its tokens (token_rows) travel apart from the state: all of them when a page opens the panel, then those
    that have changed, as a message.
    """

    title = "Tokens"
    module = "tokens.js"
    styles = ("tokens.css",)

    selected = traitlets.Int(None, allow_none=True).tag(sync=True, setting=True)
    problem = traitlets.Unicode("").tag(sync=True)  # why the last fork failed
    rows = traitlets.Any().tag(sync=True, to_json=_all_rows)

    def __init__(self, player: Player):
        self.sent: list[Row] = []  # what the browser has
        self._told = 0
        self._rows = TokenRows(player.timeline.text_of)
        super().__init__(player)

    @traitlets.observe("selected")
    def _look_again(self, _: Any) -> None:
        self.player.refresh(self)

    def look(self, view: EngineView) -> dict[str, Any]:
        known_branches = branches_of(view)
        branches = known_branches[-MOST_BRANCHES:]
        known = {branch.number for branch in branches}
        chosen = self.selected if self.selected in known else max(known, default=None)
        text_of = self.timeline.text_of
        state: dict[str, Any] = {
            "nodes": [_node(view, branch, text_of) for branch in branches],
            "selected": chosen,
            "tokens": [],
            "sampling": {},
            "can_fork": isinstance(self.timeline, LiveTimeline) and self.timeline.error is None,
        }
        if chosen is not None:
            branch = next(branch for branch in branches if branch.number == chosen)
            state["tokens"] = self._rows.of(view, branch, known_branches)
            state["sampling"] = dict(view.sequences[chosen].sampling)
            state["begins"] = branch.at
        return state

    # Frames

    def show(self, player: Player, moved: bool) -> int:
        before = self.sent
        size, keep = super().show(player, moved), _agree(before, self.sent)
        return size if keep == len(before) == len(self.sent) else size + self._send_rows(keep)

    def part(self, state: dict[str, Any]) -> dict[str, Any]:
        self.sent = state.pop("tokens")
        return state

    def _send_rows(self, keep: int) -> int:
        """Tell the browser of all rows but the first `keep`, which it has. previous: the frame of the last message, by
        which it sees a loss."""
        rows = self.sent[keep:]
        content = {"type": "rows", "frame": self.frame, "previous": self._told, "keep": keep, "rows": rows}
        self._told = self.frame
        self.send(content)
        return len(json.dumps(rows))

    def fork(self, position: int, token_id: int) -> None:
        """Let the engine go on from the shown text's token `position`, with another token in its place. What is before
        it comes from the prefix cache. Raises RequestError where there is no engine, and what the engine raises."""
        timeline = self.timeline
        if not isinstance(timeline, LiveTimeline):
            raise RequestError("a recording has no engine that could go on from here")
        with self.player.lock:
            view = timeline.end
            branch = next((b for b in branches_of(view) if b.number == self.state["selected"]), None)
            if branch is None or not 0 <= position < len(branch.output(view)):
                raise RequestError(f"there is no token {position} to fork at")
            seq = view.sequences[branch.number]
            ids = [*branch.prompt(view), *branch.output(view)[:position], token_id]
        room = max(1, min(LONGEST_FORK, seq.max_tokens + seq.prompt_len - len(ids)))
        timeline.source.go_on(ids, logprobs=ALTERNATIVES, max_tokens=room, **seq.sampling)

    def _receive(self, widget: Any, content: dict[str, Any], buffers: list[Any]) -> None:
        match content:
            case {"type": "rows"}:  # the browser has missed some
                self._send_rows(0)
            case {"type": "fork", "position": int(position), "token": int(token)}:
                threading.Thread(target=self._try_fork, args=(position, token), daemon=True).start()
        super()._receive(widget, content, buffers)

    def _try_fork(self, position: int, token: int) -> None:
        with self.player.lock:
            self.problem = ""
            self.selected = None  # the newest, which the fork will be
        try:
            self.fork(position, token)
        except (VllmNbError, ValueError) as error:
            with self.player.lock:
                self.problem = str(error)

    def draw(self, state: dict[str, Any]) -> Svg:
        return draw(state)

    def numbers(self, state: dict[str, Any]) -> str:
        return numbers(state)


def _agree(before: list[Row], after: list[Row]) -> int:
    """How many rows at the beginning are the same."""
    for place, (one, other) in enumerate(zip(before, after, strict=False)):
        if one is not other and one != other:
            return place
    return min(len(before), len(after))


def _node(view: EngineView, branch: Branch, text_of: Any) -> dict[str, Any]:
    own = branch.output(view)[branch.at :]
    return {
        "id": branch.number,
        "parent": branch.parent,
        "at": branch.at,
        "text": shortened(text_of(own[:24]), 48),
        "count": len(own),
        "state": _state_of(view.sequences[branch.number]),
    }


def _state_of(seq: SequenceView) -> str:
    return seq.status if seq.finish_reason is None else seq.finish_reason


def draw(state: dict[str, Any]) -> Svg:
    """The text, each token on a ground the stronger the less likely it was, underlined where another was likelier."""
    lines = _lines(state["tokens"])
    below = 52 + _LINE * max(len(lines), 1)
    told = f"{len(state['tokens'])} tokens of sequence {state['selected']}" if state["tokens"] else "no tokens yet"
    picture = Svg(_WIDTH, below + 20 + 16 * len(state["nodes"]), "Tokens", told)
    picture.text(12, 22, "Tokens", size=14, bold=True)
    picture.text(
        84, 22, "the stronger the colour, the less likely; underlined: another was likelier", size=11, fill="muted"
    )
    if not state["tokens"]:
        picture.text(12, 52, "No request has asked for logprobs yet: %%vllm --logprobs 5.", fill="muted")
    for row, line in enumerate(lines):
        y = 44 + _LINE * row
        for column, text, (_, _, p, rank, entropy, _) in line:
            x, width = 12 + column * _COLUMN, len(text) * _COLUMN
            hint = f"{text!r}: p {p:.3g}, rank {rank}" + ("" if entropy is None else f", entropy {entropy:.3g} bits")
            picture.rect(x, y, width, _LINE - 4, "series1", opacity=max(0.02, 0.7 * (1 - p)), hint=hint)
            picture.text(x, y + 13, text, size=_SIZE, mono=True)
            if rank is not None and rank > 1:
                picture.line(x, y + 17, x + width, y + 17, "text", width=1.2)
    for place, node in enumerate(state["nodes"]):
        origin = "" if node["parent"] is None else f" forked from {node['parent']} at token {node['at']}"
        words = f"sequence {node['id']}{origin}: {node['text']} ({node['count']} tokens)"
        picture.text(12, below + 14 + 16 * place, words, size=10.5, fill="muted", room=_WIDTH - 24)
    return picture


def _lines(tokens: Sequence[list[Any]]) -> list[list[tuple[int, str, list[Any]]]]:
    """Tokens in lines: (column, text, row). A token that does not fit begins a line; a line feed ends one."""
    most = int((_WIDTH - 24) / _COLUMN)
    lines: list[list[tuple[int, str, list[Any]]]] = [[]]
    column = 0
    for row in tokens:
        text = row[0].replace("\n", "⏎").replace("\t", "⇥") or "·"
        if column + len(text) > most and column:
            lines.append([])
            column = 0
        lines[-1].append((column, shortened(text, most), row))
        column += len(text)
        if "\n" in row[0]:
            lines.append([])
            column = 0
    return [line for line in lines if line]


def numbers(state: dict[str, Any]) -> str:
    """HTML: every token with its probability, rank, entropy and likeliest alternatives."""
    rows = []
    for place, (text, _, p, rank, entropy, others) in enumerate(state["tokens"]):
        likeliest = ", ".join(f"{other!r} {share:.3g}{f' (cut by {cut})' if cut else ''}"
                              for _, other, share, _, cut, _ in others[:5])  # fmt: skip
        rows.append([place, repr(text), p, rank, "–" if entropy is None else entropy, likeliest])
    return table("Numbers", ["", "token", "probability", "rank", "entropy, bits", "alternatives"], rows)
