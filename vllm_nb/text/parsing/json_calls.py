"""Decoders of calls in JSON. They stream arguments as they come; whether these are JSON shows at their end."""

from typing import Literal

from vllm_nb.text.parsing.calls import CallBuilder, Malformed, parsed_json

_SPACE = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")
_KEYS = ("name", *_ARGUMENTS, "id", "type")


class JsonValue:
    """Finds the end of one JSON value, by quotes and brackets alone."""

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._quoted = self._escaped = self._bare = False

    def feed(self, text: str, at: int) -> int:
        """The value goes on at `at`; returns where it ends, or the text's end."""
        while at < len(text):
            char = text[at]
            if self._quoted:
                at = self._string(text, at)
            elif char == '"' and not self._bare:
                self._quoted = True
                at += 1
            elif char in "{[":
                self._depth += 1
                at += 1
            elif char in "}]" and self._depth:
                self._depth -= 1
                at += 1
                self.done = not self._depth
            elif not self._depth and (char in '"]},;' or char in _SPACE):  # after a number, true, false or null
                self.done = True
                return at
            else:
                self._bare = not self._depth
                at += 1
            if self.done:
                break
        return at

    def _string(self, text: str, at: int) -> int:
        while at < len(text):
            char = text[at]
            at += 1
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._quoted = False
                self.done = not self._depth
                break
        return at


class JsonArguments:
    """The arguments of the open call: one object."""

    def __init__(self, calls: CallBuilder):
        self.done, self.used = False, 0
        self._calls = calls
        self._value = JsonValue()
        self._begun = False

    def feed(self, text: str) -> None:
        begin = 0
        if not self._begun:
            self.used = begin = len(text) - len(text.lstrip(_SPACE))
            if begin == len(text):
                return
            if text[begin] != "{":
                raise Malformed
            self._begun = True
        self.used = self._value.feed(text, begin)
        self._calls.write(text[begin : self.used])
        if self._value.done:
            self._calls.end()
            self.done = True

    def control(self, name: str) -> None:
        raise Malformed


class JsonCalls:
    """{"name": ..., "arguments": {...}}, or a list of these."""

    def __init__(self, calls: CallBuilder):
        self.done, self.used = False, 0
        self._calls = calls
        self._in_list = False
        self._expects: Literal["begin", "key", "colon", "value", "comma", "between"] = "begin"
        self._scan: JsonValue | None = None  # of the key or value that is being read
        self._held: list[str] = []  # of it, where it is not streamed
        self._key = ""
        self._streams = False  # what is read are the open call's arguments
        self._name: str | None = None
        self._early: str | None = None  # arguments that came before the name

    def control(self, name: str) -> None:
        raise Malformed

    def feed(self, text: str) -> None:
        self.used = 0
        while self.used < len(text) and not self.done:
            char = text[self.used]
            if self._scan is not None:
                self._read(self._scan, text)
            elif char in _SPACE:
                self.used += 1
            elif (self._expects == "key" and char == '"') or (self._expects == "value" and char not in "]},:"):
                self._begin_value(char)
            else:
                self._punctuation(char)
                self.used += 1
                if self._expects == "between":
                    return

    def _punctuation(self, char: str) -> None:
        match self._expects, char:
            case "begin", "[" if not self._in_list:
                self._in_list = True
            case "begin", "{":
                self._name = self._early = None
                self._expects = "key"
            case "colon", ":":
                self._expects = "value"
            case "comma", ",":
                self._expects = "key"
            case "comma", "}":
                self._end_call()
            case "between", ",":
                self._expects = "begin"
            case "between", "]":
                self.done = True
            case _:
                raise Malformed

    def _begin_value(self, first: str) -> None:
        self._scan, self._held = JsonValue(), []
        if self._expects == "value" and self._key in _ARGUMENTS and self._name is not None and first == "{":
            self._calls.begin(self._name)
            self._streams = True

    def _read(self, scan: JsonValue, text: str) -> None:
        begin, self.used = self.used, scan.feed(text, self.used)
        piece = text[begin : self.used]
        if self._streams:
            self._calls.write(piece)
        else:
            self._held.append(piece)
        if scan.done:
            self._scan = None
            self._take("".join(self._held))
            self._streams = False

    def _take(self, text: str) -> None:
        """A key or value is whole."""
        if self._expects == "key":
            self._key = parsed_json(text)
            if self._key not in _KEYS:
                raise Malformed
            self._expects = "colon"
            return
        self._expects = "comma"
        if self._key == "name":
            name = parsed_json(text)
            if not isinstance(name, str) or self._name is not None:
                raise Malformed
            self._name = name
        elif self._key in _ARGUMENTS and not self._streams:
            self._early = text

    def _end_call(self) -> None:
        if not self._calls.is_open:
            self._calls.begin(self._name or "")
            self._calls.write(_as_object(self._early))
        self._calls.end()
        self._expects = "between"
        self.done = not self._in_list


def _as_object(arguments: str | None) -> str:
    """Some models write the arguments as a text that holds their JSON, or null for none."""
    if arguments is None:
        return "{}"
    value = parsed_json(arguments)
    return "{}" if value is None else value if isinstance(value, str) else arguments
