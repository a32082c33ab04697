"""How a family of models writes thoughts and tool calls: a state machine as data, which parser.py runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Protocol

from vllm_nb.text.parsing.calls import CallBuilder

MALFORMED = "malformed"  # where a terminal leads that may not be there; no state, the call ends as text


class Sink(Enum):
    """What becomes of the text in a state."""

    CONTENT = auto()  # the answer
    REASONING = auto()
    BLANK = auto()  # white space only, which is dropped; other text leads to `otherwise`, or is malformed
    DROP = auto()  # dropped, up to a terminal
    HEAD = auto()  # collected up to a terminal, whose Go makes something of it
    KEY = auto()  # collected: an argument's name
    VALUE = auto()  # collected: its value, as the tool's schema has it
    PAYLOAD = auto()  # goes to a decoder of its own


class Payload(Protocol):
    """A decoder of calls. Both methods raise Malformed.

    used: how much of the last text it has taken. Less than all of it when done, after a call's end, and when malformed.
    """

    done: bool
    used: int

    def feed(self, text: str) -> None:
        """Takes text."""

    def control(self, name: str) -> None:
        """Takes a control token."""


@dataclass(frozen=True, slots=True)
class Go:
    """Where a terminal leads. to: a state, or what finds it from the collected text. read: finds in that the name of
    the called function ("": none), of the argument, or its value. keep: characters at the terminal's end that the next
    state is to read."""

    to: str | Callable[[str], str]
    read: Callable[[str], str] | None = None
    keep: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """on: terminal -> where it leads. call: within a call, whose text comes back should it be malformed. then: where a
    finished payload leads."""

    sink: Sink
    on: Mapping[str, str | Go] = field(default_factory=dict)
    call: bool = False
    otherwise: str | None = None
    payload: Callable[[CallBuilder], Payload] | None = None
    then: str = "content"


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How a call is written where it is forced: `open` NAME `middle` ARGUMENTS `close`, `between` them, all within
    `start` and `end`. Arguments are JSON."""

    open: str
    middle: str
    close: str
    between: str
    start: str = ""
    end: str = ""
    several: bool = True  # whether one answer may hold several calls


@dataclass(frozen=True, slots=True)
class Family:
    """states: those the output goes through, from `start`; "content" must be one. think: the marks around reasoning,
    where the states know none. controls: tokens with a meaning inside a state, besides the terminals. known_names:
    whether only the names of given tools make a call, since anything might be one. forced: how to write a call, None
    for families whose arguments are not JSON. preface: the marks around reasoning where it is not `think`; answer: what
    comes before the answer."""

    name: str
    states: Mapping[str, State]
    start: str = "content"
    think: tuple[str, str] | None = None
    controls: tuple[str, ...] = ()
    known_names: bool = False
    forced: CallSyntax | None = None
    preface: tuple[str, str] | None = None
    answer: str = ""
    new_id: Callable[[], str] | None = None

    @property
    def terminals(self) -> set[str]:
        return {terminal for state in self.states.values() for terminal in state.on} | set(self.controls)

    def prepared(self, *, tools: bool) -> "Family":
        """With states for `think`; without tools, calls are text like any other."""
        states = dict(self.states)
        if self.think is not None:
            begin, end = self.think
            for name, state in self.states.items():
                if state.sink in (Sink.CONTENT, Sink.BLANK) and not state.call:
                    states[name] = replace(state, on={**state.on, begin: "reasoning"})
            states["reasoning"] = State(Sink.REASONING, {end: self.start})
        if not tools:
            calling = {name for name, state in states.items() if state.call and state.sink is not Sink.HEAD}
            states = {name: _without(state, calling) for name, state in states.items()}
        return replace(self, states=states, think=None)


def _without(state: State, targets: set[str]) -> State:
    kept = {terminal: go for terminal, go in state.on.items() if (go if isinstance(go, str) else go.to) not in targets}
    return replace(state, on=kept)
