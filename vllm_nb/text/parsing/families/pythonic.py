"""Llama 3.2 and 4 where the prompt asks for Python calls: [f(a=1, b="x"), g()], perhaps in <|python_start|> marks."""

from vllm_nb.text.parsing.calls import CallBuilder, Malformed, python_literal
from vllm_nb.text.parsing.family import Family, Go, Sink, State

MAX_ARGUMENT_CHARS = 256 * 1024
_CLOSING = {"(": ")", "[": "]", "{": "}"}


class PythonCalls:
    """A list of calls with keyword arguments, which are literals; each argument is passed on as it is complete."""

    def __init__(self, calls: CallBuilder):
        self.done, self.used = False, 0
        self._calls = calls
        self._place = "begin"  # begin, name, arguments, between
        self._held: list[str] = []
        self._open: list[str] = []  # brackets to be closed within an argument
        self._quote, self._escaped = "", False

    def control(self, name: str) -> None:
        raise Malformed

    def feed(self, text: str) -> None:
        self.used = 0
        while self.used < len(text) and not self.done:
            char = text[self.used]
            complete = self._place
            self._take(char)
            self.used += 1
            if complete == "arguments" and self._place == "between":
                return

    def _take(self, char: str) -> None:
        if self._place == "arguments":
            self._argument_char(char)
        elif self._place == "name" and (char.isalnum() or char in "_.-"):
            self._held.append(char)
        elif self._place == "name" and char == "(" and self._held:
            self._calls.begin(self._taken())
            self._place = "arguments"
        elif char.isspace() and not self._held:
            pass
        elif (self._place, char) in (("begin", "["), ("between", ",")):
            self._place = "name"
        elif char == "]" and self._place == "between":
            self.done = True
        else:
            raise Malformed

    def _argument_char(self, char: str) -> None:
        if self._quote:
            self._quote = "" if char == self._quote and not self._escaped else self._quote
            self._escaped = char == "\\" and not self._escaped
        elif char in "\"'":
            self._quote = char
        elif char in _CLOSING:
            self._open.append(_CLOSING[char])
        elif self._open and char == self._open[-1]:
            self._open.pop()
        elif char in ",)" and not self._open:
            self._argument(self._taken().strip())
            if char == ")":
                self._calls.end()
                self._place = "between"
            return
        self._held.append(char)
        if len(self._held) > MAX_ARGUMENT_CHARS:
            raise Malformed

    def _argument(self, source: str) -> None:
        name, equals, value = source.partition("=")
        if equals:
            self._calls.argument(name.strip(), python_literal(value))
        elif source:
            raise Malformed

    def _taken(self) -> str:
        held, self._held = "".join(self._held), []
        return held


_BEGINS: dict[str, str | Go] = {"[": Go("calls", keep=1), "<|python_start|>": "calls"}

PYTHONIC = Family(
    "pythonic",
    {
        "start": State(Sink.BLANK, _BEGINS, otherwise="content"),
        "content": State(Sink.CONTENT, {"<|python_start|>": "calls"}),
        "calls": State(Sink.PAYLOAD, call=True, payload=PythonCalls, then="closing"),
        "closing": State(Sink.BLANK, {"<|python_end|>": "content"}, otherwise="content"),
    },
    start="start",
    think=("<think>", "</think>"),
    known_names=True,
)
