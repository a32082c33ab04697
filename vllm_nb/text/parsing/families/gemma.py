"""FunctionGemma and Gemma 4; strings stand between tokens of their own, so that nothing in them is syntax.

<start_function_call>call:f{a:<escape>x<escape>,b:[1,true]}<end_function_call>
<|channel>thought\n...<channel|><|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|>
"""

import json

from vllm_nb.text.parsing.calls import CallBuilder, Malformed, parsed_json
from vllm_nb.text.parsing.family import Family, Go, Sink, State

_QUOTES = ("<escape>", '<|"|>')
_CLOSING = {"{": "}", "[": "]"}
_MAX_DEPTH = 64


class GemmaArguments:
    """{key:value,...} rewritten as JSON while it comes: keys are bare, strings quoted by tokens, the rest is JSON."""

    def __init__(self, calls: CallBuilder):
        self.done, self.used = False, 0
        self._calls = calls
        self._open: list[str] = []  # brackets to be closed
        self._quoted = False
        self._held: list[str] = []
        self._value: str | None = None  # a string that is complete

    def control(self, name: str) -> None:
        if name not in _QUOTES or not self._open:
            raise Malformed
        if self._quoted:
            self._value = json.dumps("".join(self._held), ensure_ascii=False)
            self._held = []
        elif self._value is not None or "".join(self._held).strip():
            raise Malformed
        self._quoted = not self._quoted

    def feed(self, text: str) -> None:
        self.used = 0
        while self.used < len(text) and not self.done:
            char = text[self.used]
            if self._quoted or char not in "{}[]:,":
                self._held.append(char)
            else:
                self._punctuation(char)
            self.used += 1

    def _punctuation(self, char: str) -> None:
        if char in _CLOSING:
            if "".join(self._held).strip() or self._value is not None or len(self._open) == _MAX_DEPTH:
                raise Malformed
            self._held = []
            self._open.append(_CLOSING[char])
            self._calls.write(char)
        elif not self._open:
            raise Malformed
        elif char == ":":
            key = self._value or json.dumps("".join(self._held).strip(), ensure_ascii=False)
            self._held, self._value = [], None
            self._calls.write(key + ": ")
        else:
            self._calls.write(self._literal())
            self._close(char)

    def _literal(self) -> str:
        """The value before a comma or bracket; nothing after one that was closed, and in an empty object or list."""
        bare, value = "".join(self._held).strip(), self._value
        self._held, self._value = [], None
        if value is not None or not bare:
            return value or ""
        parsed_json(bare)
        return bare

    def _close(self, char: str) -> None:
        if char == ",":
            self._calls.write(", ")
        elif char != self._open.pop():
            raise Malformed
        elif self._open:
            self._calls.write(char)
        else:
            self._calls.write(char)
            self._calls.end()
            self.done = True


def _name(head: str) -> str:
    return head.strip().removeprefix("call:").strip()


_ENDS = {"<end_function_call>": "content", "<tool_call|>": "content"}
_BEGINS = {"<start_function_call>": "name", "<|tool_call>": "name"}

GEMMA = Family(
    "gemma",
    {
        "content": State(Sink.CONTENT, {**_BEGINS, "<|channel>": "channel"}),
        "channel": State(Sink.DROP, {"\n": "reasoning"}),
        "reasoning": State(Sink.REASONING, {"<channel|>": "content"}),
        "name": State(Sink.HEAD, {"{": Go("arguments", _name, keep=1)}, call=True),
        "arguments": State(Sink.PAYLOAD, call=True, payload=GemmaArguments, then="closing"),
        "closing": State(Sink.BLANK, {**_ENDS, **_BEGINS}, otherwise="content"),
    },
    controls=_QUOTES,
    preface=("<|channel>", "<channel|>"),
)
