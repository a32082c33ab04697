"""Tools in a cell: the user is asked before a call, and sees what was called and what came of it."""

import html
import json
from collections.abc import Callable
from typing import Any

from IPython.core.error import StdinNotImplementedError, UsageError

from vllm_nb.client.tools import ToolResult
from vllm_nb.messages import ToolCall

_SHOWN = 500  # characters of a result


class ShownResult:
    """A call and its result, as a cell shows them."""

    def __init__(self, result: ToolResult):
        self.result = result

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        result = self.result
        text = result.text if len(result.text) <= _SHOWN else f"{result.text[:_SHOWN]} ..."
        shown = f"{call_text(result.call)} → {text}"
        style = "white-space:pre-wrap;font-family:monospace;font-size:90%;opacity:.8"
        return {"text/plain": shown, "text/html": f'<div style="{style}">{html.escape(shown)}</div>'}


def call_text(call: ToolCall) -> str:
    """As Python writes it: `depth(of='sea')`; arguments that are no JSON as they came."""
    try:
        arguments = json.loads(call.arguments or "{}")
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    except (ValueError, AttributeError):
        shown = call.arguments
    return f"{call.name}({shown})"


def ask_user() -> Callable[[ToolCall], bool]:
    """Asks before each call; "a" allows all that follow."""
    allow_all = False

    def confirm(call: ToolCall) -> bool:
        nonlocal allow_all
        if allow_all:
            return True
        try:
            reply = input(f"Run {call_text(call)}? [y]es, [n]o, [a]ll: ").strip().lower()
        except (StdinNotImplementedError, EOFError):
            raise UsageError("%%vllm: a tool is to be called, and nobody can be asked here: --yes runs them") from None
        allow_all = reply in ("a", "all")
        return allow_all or reply in ("y", "yes")

    return confirm
