"""Runs a family's state machine over tokens: what of the output is answer, what reasoning, what calls.

Linear in the output, and the same however it is cut into tokens: a text that may yet become a terminal is held back. A
terminal that is a token of the vocabulary comes as that token alone; text that merely spells it is text. A call that
turns out malformed goes to the answer as it was written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vllm_nb.messages import ToolCall
from vllm_nb.outputs import ToolCallDelta
from vllm_nb.text.detokenizer import Detokenizer
from vllm_nb.text.parsing.calls import CallBuilder, Malformed, new_call_id
from vllm_nb.text.parsing.family import MALFORMED, Family, Go, Payload, Sink
from vllm_nb.text.tokenizer import Tokenizer

MAX_CALL_CHARS = 2**20  # of one call; longer ones are text

T = TypeVar("T")


@dataclass(slots=True)
class Parsed:
    """What some tokens brought."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)


class OutputParser:
    """Of one choice. schemas: the arguments of each tool the model was told of, by name; empty: no calls are looked
    for. state: where the output begins, other than at the family's start, as after a prompt that opens the reasoning.

    reasoning_tokens: how many were spent on it so far.
    """

    def __init__(
        self,
        family: Family,
        tokenizer: Tokenizer,
        schemas: Mapping[str, Mapping[str, Any]],
        state: str | None = None,
    ):
        family = family.prepared(tools=bool(schemas))
        self.reasoning_tokens = 0
        self._states = family.states
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        ids = tokenizer.added_ids
        self._controls = {ids[name]: name for name in family.terminals if name in ids}
        self._spelled = {
            name: tuple(terminal for terminal in state.on if terminal not in ids)
            for name, state in family.states.items()
        }
        self._builder = CallBuilder(schemas, family.known_names, family.new_id or new_call_id)
        self._text: list[str] = []  # found by this push
        self._reasoning: list[str] = []
        self._buffer = ""  # not yet understood
        self._space: list[str] = []  # white space that is shown only if more of its part follows
        self._fresh = state is not None  # nothing but white space since a mark: it belongs to the mark
        self._collected: list[str] = []
        self._raw: list[str] = []  # the call that is being read, as it was written
        self._raw_size = 0
        self._broken = False  # what follows may still be the end of a malformed call
        self._payload: Payload | None = None
        self._name = state or family.start
        self._state = self._states[self._name]

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The complete calls so far."""
        return self._builder.calls

    def push(self, ids: Sequence[int]) -> Parsed:
        for token_id in ids:
            thinking = self._state.sink is Sink.REASONING
            name = self._controls.get(token_id)
            if name is None:
                self._scan(self._detokenizer.push((token_id,)))
            else:
                self._scan(self._detokenizer.flush(), last=True)
                self._control(name, token_id)
            self.reasoning_tokens += thinking or self._state.sink is Sink.REASONING
        return self._parsed()

    def finish(self, *, cut: bool) -> Parsed:
        """No more tokens come. cut: by the length limit or an abort, so that a call begun stays as it is; else one that
        is not complete is malformed."""
        if cut and self._fresh and self._state.sink is Sink.BLANK:
            self._buffer = ""  # half a mark behind a call
        self._scan(self._detokenizer.flush(), last=True)
        if cut and self._builder.is_open:
            begun = "".join(self._collected).strip()
            is_key = self._state.sink is Sink.KEY
            self._builder.cut(key=begun if is_key else "", value="" if is_key else begun)
        elif self._builder.is_open and self._state.sink in (Sink.BLANK, Sink.DROP):
            self._guarded(self._builder.end)
        elif self._state.call:
            self._break()
        if self._state.sink is not Sink.REASONING and not self._fresh:
            self._text += self._space
        return self._parsed()

    def _parsed(self) -> Parsed:
        parsed = Parsed("".join(self._text), "".join(self._reasoning), self._builder.deltas)
        self._text, self._reasoning, self._builder.deltas = [], [], []
        return parsed

    def _guarded(self, action: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return action(*arguments)
        except Malformed:
            self._break()
            return None

    # Text

    def _scan(self, text: str, last: bool = False) -> None:
        """Take all of `text` that is clear; with `last`, all of it."""
        self._buffer += text
        while self._buffer and self._guarded(self._step, last) is not False:
            continue

    def _step(self, last: bool) -> bool:
        """Take something off the buffer. False when what is left has to wait for more."""
        if self._payload is not None:
            self._feed(self._payload)
            return True
        start, terminal = _find(self._buffer, self._spelled[self._name], last)
        if start:
            return self._take(start)
        if terminal is None:
            return False
        self._buffer = self._buffer[len(terminal) :]
        self._follow(self._state.on[terminal], terminal)
        return True

    def _take(self, size: int) -> bool:
        """The buffer's beginning, which holds no terminal."""
        text, rest = self._buffer[:size], self._buffer[size:]
        match self._state.sink:
            case Sink.BLANK:
                return self._take_blank(text)
            case Sink.CONTENT:
                self._show(text, self._text)
            case Sink.REASONING:
                self._show(text, self._reasoning)
            case Sink.HEAD | Sink.KEY | Sink.VALUE:
                self._collected.append(text)
        self._buffer = rest
        self._remember(text)
        return True

    def _take_blank(self, text: str) -> bool:
        blank = text[: len(text) - len(text.lstrip())]
        self._buffer = self._buffer[len(blank) :]
        self._remember(blank)
        if not self._fresh and not self._state.call:
            self._space.append(blank)
        if len(blank) < len(text):
            if self._state.otherwise is None:
                raise Malformed
            self._enter(self._state.otherwise)
        return True

    def _show(self, text: str, shown: list[str]) -> None:
        """White space at both ends of a part separates it from marks, so it is held until more follows."""
        body = text.rstrip()
        space = text[len(body) :]
        if body and self._fresh:
            body = body.lstrip()
            self._fresh = False
        if body:
            shown += (*self._space, body)
            self._space = [space]
        elif not self._fresh:
            self._space.append(space)

    def _feed(self, payload: Payload) -> None:
        complete = len(self._builder.calls)
        try:
            payload.feed(self._buffer)
        finally:  # also of a malformed one: up to there it is the call's text
            self._remember(self._buffer[: payload.used])
            self._buffer = self._buffer[payload.used :]
        if len(self._builder.calls) > complete:
            self._raw, self._raw_size = [], 0
        if payload.done:
            self._leave(self._state.then)

    def _remember(self, text: str) -> None:
        if self._state.call:
            self._raw.append(text)
            self._raw_size += len(text)
            if self._raw_size > MAX_CALL_CHARS:
                raise Malformed

    # Marks

    def _control(self, name: str, token_id: int) -> None:
        """A token that is a terminal of the family."""
        if name in self._state.on:
            self._guarded(self._follow, self._state.on[name], name)
        elif self._payload is not None:
            if self._guarded(self._feed_control, self._payload, name) is None:
                self._control(name, token_id)
        elif self._state.sink in (Sink.HEAD, Sink.KEY, Sink.VALUE):
            self._collected.append(name)
            self._guarded(self._remember, name)
        elif self._state.call and self._state.sink is Sink.BLANK:
            self._break()
            self._control(name, token_id)
        else:
            text = self._tokenizer.token_bytes(token_id).decode(errors="replace")
            self._plain(text or (name if self._broken else ""))

    def _plain(self, text: str) -> None:
        """Text of a token that means nothing here."""
        self._buffer = text
        while self._buffer:
            self._guarded(self._take, len(self._buffer))

    def _feed_control(self, payload: Payload, name: str) -> bool:
        payload.control(name)
        self._remember(name)
        return True

    def _follow(self, go: str | Go, terminal: str) -> None:
        """Through a terminal into the next state."""
        go = Go(go) if isinstance(go, str) else go
        found, self._collected = "".join(self._collected), []
        kept = terminal[len(terminal) - go.keep :]
        if not self._state.call:
            self._raw, self._raw_size = [*self._space], 0
        self._raw.append(terminal.removesuffix(kept))
        self._buffer = kept + self._buffer
        self._use(self._state.sink, go.read(found) if go.read is not None else found)
        to = go.to(found) if callable(go.to) else go.to
        if to == MALFORMED:
            raise Malformed
        self._leave(to)

    def _use(self, sink: Sink, found: str) -> None:
        """What was collected."""
        if sink is Sink.HEAD and found:
            self._builder.begin(found)
        elif sink is Sink.KEY:
            self._builder.key(found.strip())
        elif sink is Sink.VALUE:
            self._builder.value(found)

    def _leave(self, to: str) -> None:
        """A part is over; with the last part of a call, the call."""
        if self._builder.is_open and not self._states[to].call:
            self._builder.end()
        self._space, self._fresh, self._broken = [], True, False
        self._enter(to)

    def _enter(self, name: str) -> None:
        self._name, self._state = name, self._states[name]
        payload = self._state.payload
        self._payload = None if payload is None else payload(self._builder)

    def _break(self) -> None:
        """The call is none: its text is the answer's."""
        self._builder.discard()
        self._text += self._raw
        self._raw, self._raw_size, self._collected, self._space = [], 0, [], []
        self._fresh, self._broken = False, True
        self._enter("content")


def _find(text: str, terminals: Sequence[str], last: bool) -> tuple[int, str | None]:
    """The first terminal and where it begins; without one, how much of the text cannot begin one."""
    start, found = len(text), None
    for terminal in terminals:
        at = text.find(terminal)
        if 0 <= at < start:
            start, found = at, terminal
    if not last:
        for terminal in terminals:
            for size in range(min(len(terminal), len(text) + 1) - 1, 0, -1):
                if len(text) - size < start and text.endswith(terminal[:size]):
                    start, found = len(text) - size, None
    return start, found
