"""An answer as a row of blocks, one open at a time: reasoning, text, tool calls. The Responses API and Anthropic's
messages are both made of these."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from vllm_nb.outputs import StreamItem, TokenLogprob, ToolCallDelta, ToolRun

Kind = Literal["reasoning", "text", "tool_call", "tool_run"]
Change = Literal["start", "delta", "stop"]


@dataclass(slots=True)
class Block:
    """number: its place in the answer. text: of a tool call, the JSON of its arguments."""

    kind: Kind
    number: int
    text: str = ""
    call_id: str = ""
    name: str = ""
    run: ToolRun | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    fresh_logprobs: list[TokenLogprob] = field(default_factory=list)  # those of the last change


class Blocks:
    """Collects the blocks of one choice, and says how each item changes them."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None
        self._call_index = -1

    def add(self, item: StreamItem) -> Iterator[tuple[Change, Block, str]]:
        """(change, block, the piece that a "delta" adds to its text). At its end an answer has at least one block."""
        for run in item.tool_runs:
            yield from self._run(run)
        if item.reasoning:
            yield from self._piece("reasoning", item.reasoning, item)
        if item.text:
            yield from self._piece("text", item.text, item)
        for call in item.tool_calls:
            yield from self._call(call)
        if item.finish_reason is not None:
            if not self.all:
                yield self._begin("text")
            yield from self._close()

    def _piece(self, kind: Kind, piece: str, item: StreamItem) -> Iterator[tuple[Change, Block, str]]:
        block = self._open
        if block is None or block.kind != kind:
            yield from self._close()
            yield self._begin(kind)
            block = self.all[-1]
        block.text += piece
        if kind == "text":
            block.fresh_logprobs = item.logprobs or []
            block.logprobs += block.fresh_logprobs
        yield "delta", block, piece

    def _call(self, call: ToolCallDelta) -> Iterator[tuple[Change, Block, str]]:
        block = self._open
        if block is None or block.kind != "tool_call" or call.index != self._call_index:
            yield from self._close()
            self._call_index = call.index
            begun = self._begin("tool_call")
            block = begun[1]
            block.call_id, block.name = call.id or "", call.name or ""
            yield begun
        if call.arguments:
            block.text += call.arguments
            yield "delta", block, call.arguments

    def _run(self, run: ToolRun) -> Iterator[tuple[Change, Block, str]]:
        yield from self._close()
        begun = self._begin("tool_run")
        begun[1].run = run
        yield begun
        yield from self._close()

    def _begin(self, kind: Kind) -> tuple[Change, Block, str]:
        self._open = Block(kind, len(self.all))
        self.all.append(self._open)
        return "start", self._open, ""

    def _close(self) -> Iterator[tuple[Change, Block, str]]:
        if self._open is not None:
            block, self._open = self._open, None
            yield "stop", block, ""
