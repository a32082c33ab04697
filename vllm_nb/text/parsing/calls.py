"""Tool calls as they come out of a parser: deltas for streams, whole calls for answers."""

import ast
import json
import secrets
import string
from collections.abc import Callable, Mapping
from typing import Any

from vllm_nb.messages import ToolCall
from vllm_nb.outputs import ToolCallDelta

_ALPHABET = string.ascii_letters + string.digits


class Malformed(Exception):
    """What began as a call is none; its text goes to the answer."""


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def short_call_id() -> str:
    """Nine letters and digits, as Mistral's templates demand."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(9))


class CallBuilder:
    """schemas: of the arguments of each tool, by its name. known_names: whether others make no call.

    deltas: what is new, to be taken away by the reader. calls: the complete ones, and one that was cut off.
    """

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]], known_names: bool, new_id: Callable[[], str]):
        self.deltas: list[ToolCallDelta] = []
        self.calls: list[ToolCall] = []
        self._schemas, self._known_names, self._new_id = schemas, known_names, new_id
        self._index = -1
        self._name: str | None = None  # of the open call
        self._id = ""
        self._arguments: list[str] = []
        self._in_parts = False  # an argument at a time, so that the object is for us to close
        self._key: str | None = None

    @property
    def is_open(self) -> bool:
        return self._name is not None

    def begin(self, name: str) -> None:
        if self._name is not None or not name or (self._known_names and name not in self._schemas):
            raise Malformed
        self._index += 1
        self._name, self._id, self._arguments, self._in_parts = name, self._new_id(), [], False
        self._key = None
        self.deltas.append(ToolCallDelta(self._index, self._id, name))

    def write(self, piece: str) -> None:
        """The next piece of the arguments' JSON."""
        if self._name is None:
            raise Malformed
        if piece:
            self._arguments.append(piece)
            self.deltas.append(ToolCallDelta(self._index, arguments=piece))

    def key(self, name: str) -> None:
        if self._name is None or not name:
            raise Malformed
        self._key = name

    def value(self, text: str) -> None:
        """The value of the last key, as text: what its schema says it is, else what it looks like."""
        self.argument(self._key or "", _as_declared(text, self._declared()))

    def _declared(self) -> Mapping[str, Any]:
        """The schema of the last key's value."""
        schema = (self._schemas.get(self._name or "") or {}).get("properties") or {}
        declared = schema.get(self._key) if isinstance(schema, Mapping) else None
        return declared if isinstance(declared, Mapping) else {}

    def argument(self, key: str, value: Any) -> None:
        """A whole argument. value: plain data."""
        try:
            written = f"{_quoted(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        except (TypeError, ValueError, RecursionError):
            raise Malformed from None
        self._write_part(written)
        self._key = None

    def _write_part(self, written: str) -> None:
        self.write(f", {written}" if self._arguments else f"{{{written}")
        self._in_parts = True

    def end(self) -> None:
        """The open call is complete. Raises Malformed when its arguments are no JSON object."""
        if self._name is None:
            raise Malformed
        if self._in_parts or not self._arguments:
            self.write("}" if self._in_parts else "{}")
        arguments = "".join(self._arguments)
        if not isinstance(parsed_json(arguments), dict):
            raise Malformed
        self._close(arguments)

    def cut(self, key: str = "", value: str = "") -> None:
        """The output ends here, by its length: the open call stays as it is. key, value: so far, of the argument that
        was begun; it is unfinished JSON then, as the arguments are."""
        if self._name is None:
            return
        if key:
            self._write_part(_quoted(key)[:-1])
        elif self._key is not None:
            is_text = _is_text(self._declared()) or value[:1] not in _JSON_BEGINS
            begun = _quoted(value)[:-1] if is_text else value
            self._write_part(f"{_quoted(self._key)}: {begun}")
        self._close("".join(self._arguments))

    def discard(self) -> None:
        self._name = None

    def _close(self, arguments: str) -> None:
        self.calls.append(ToolCall(self._id, self._name or "", arguments))
        self._name = None


def parsed_json(text: str) -> Any:
    """Raises Malformed; NaN and Infinity are no JSON."""

    def refuse(_: str) -> None:
        raise Malformed

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise Malformed from None


def python_literal(source: str) -> Any:
    """A Python literal's value, JSON's true, false and null included. Raises Malformed."""
    try:
        tree = ast.parse(source.strip(), mode="eval")
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in _JSON_NAMES:
                vars(node).update(vars(ast.Constant(_JSON_NAMES[node.id])))
                node.__class__ = ast.Constant  # type: ignore[assignment]
        return ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Malformed from None


def _is_text(schema: Mapping[str, Any]) -> bool:
    kinds = schema.get("type")
    return kinds == "string" or "string" in (kinds if isinstance(kinds, list) else ())


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_JSON_BEGINS = ("", *'{["-0123456789')  # but for names, which look like text
_JSON_NAMES = {"true": True, "false": False, "null": None}


def _as_declared(text: str, schema: Mapping[str, Any]) -> Any:
    if _is_text(schema):
        return text
    try:
        return parsed_json(text)
    except Malformed:
        pass
    try:
        return python_literal(text) if schema.get("type") else text
    except Malformed:
        return text
