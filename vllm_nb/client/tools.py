"""Python functions as tools: their JSON schema from hints and docstring, their calls, the rounds until an answer."""

import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vllm_nb.chat_options import Tool
from vllm_nb.client.completion import Completion
from vllm_nb.client.schema import problems
from vllm_nb.errors import RequestError
from vllm_nb.messages import ToolCall

MAX_ROUNDS = 8
_MAX_RESULT = 100_000  # characters
_ARGUMENT = re.compile(
    r"^\s*:?(?:param\s+)?(\w+)\s*(?:\([^)]*\))?\s*:\s*(.+)$"
)  # "name (type): text", ":param name: text"


@dataclass(frozen=True)
class ToolResult:
    """What came of one call. failed: `text` says why, for the model to make something of."""

    call: ToolCall
    text: str
    failed: bool = False

    @property
    def message(self) -> dict[str, Any]:
        return {"role": "tool", "tool_call_id": self.call.id, "name": self.call.name, "content": self.text}


class PythonTool:
    """A function that a model may call."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.name = getattr(function, "__name__", repr(function))
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise RequestError(f"tools must be plain functions; {self.name} is none")

    @cached_property
    def _arguments(self) -> Any:
        """A pydantic model of the parameters: the schema for the engine, the check of what comes back."""
        from pydantic import ConfigDict, Field, PydanticUserError, create_model

        described = _described_arguments(self.function.__doc__ or "")
        try:
            hints = typing.get_type_hints(self.function, include_extras=True)
        except NameError as error:
            raise RequestError(f"the hints of the tool {self.name} can't be read: {error}") from None
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise RequestError(f"tools take named parameters only; {self.name} has {parameter}")
            default = ... if parameter.default is parameter.empty else parameter.default
            hint = hints.get(name, str)
            own_words = typing.get_origin(hint) is typing.Annotated  # go before those of the docstring
            field = Field(default, description=described[name]) if name in described and not own_words else default
            fields[name] = (hint, field)
        try:
            return create_model(self.name, __config__=ConfigDict(extra="forbid"), **fields)
        except (PydanticUserError, NameError) as error:
            raise RequestError(f"the parameters of the tool {self.name} have no JSON schema: {error}") from None

    @property
    def tool(self) -> Tool:
        """Raises RequestError where the signature can't be told to a model."""
        schema = self._arguments.model_json_schema()
        schema.pop("title", None)
        for parameter in schema.get("properties", {}).values():
            parameter.pop("title", None)
        text = inspect.cleandoc(self.function.__doc__ or "").partition("\n\n")[0]
        return Tool(self.name, " ".join(text.split()), schema)

    def call(self, call: ToolCall) -> ToolResult:
        """Check the arguments and run it. Whatever goes wrong goes to the model as text; an interrupt is passed on."""
        from pydantic import ValidationError

        try:
            given = self._arguments.model_validate_json(call.arguments or "{}")
        except ValidationError as error:
            return ToolResult(call, f"Error: wrong arguments for {self.name}: {problems(error)}", failed=True)
        try:
            result = self.function(**{name: getattr(given, name) for name in type(given).model_fields})
            return ToolResult(call, _as_text(result))
        except Exception as error:
            return ToolResult(call, f"Error: {type(error).__name__}: {error}", failed=True)


class Toolbox:
    """The tools of a conversation, by name."""

    def __init__(self, functions: Iterable[Callable[..., Any]]):
        self._tools = {tool.name: tool for tool in map(PythonTool, functions)}

    @property
    def tools(self) -> list[Tool]:
        return [tool.tool for tool in self._tools.values()]

    def run(self, call: ToolCall) -> ToolResult:
        """As PythonTool.call; also for a name that the model has made up."""
        tool = self._tools.get(call.name)
        if tool is None:
            return ToolResult(call, f"Error: there is no tool {call.name!r}; there are {', '.join(self._tools)}", True)
        return tool.call(call)


def run_rounds(
    ask: Callable[[list[Any]], Completion],
    messages: Sequence[Any],
    toolbox: Toolbox,
    *,
    confirm: Callable[[ToolCall], bool] = lambda call: True,
    on_result: Callable[[ToolResult], None] = lambda result: None,
    max_rounds: int = MAX_ROUNDS,
) -> tuple[Completion, list[Any]]:
    """Ask, run the calls of the answer, ask again with their results, until an answer has none. Returns that answer,
    and the messages that led to it.

    ask: one round, for messages. confirm: whether a call may be run; the model is told of a refusal. max_rounds: of
    calls; then RequestError.
    """
    transcript = list(messages)
    for rounds_left in range(max_rounds, -1, -1):
        answer = ask(transcript)
        if not answer.tool_calls:
            return answer, transcript
        if not rounds_left:
            break
        transcript.append(answer.message.to_dict())
        for call in answer.tool_calls:
            refused = ToolResult(call, "Error: the user did not allow this call", True)
            result = toolbox.run(call) if confirm(call) else refused
            on_result(result)
            transcript.append(result.message)
    rounds = "1 round" if max_rounds == 1 else f"{max_rounds} rounds"
    raise RequestError(f"the model still calls tools after {rounds}: stopped")


def _described_arguments(doc: str) -> dict[str, str]:
    """The lines of a docstring that explain a parameter: "name: text", "name (type): text", ":param name: text"."""
    return {match[1]: match[2].strip() for line in doc.splitlines() if (match := _ARGUMENT.match(line))}


def _as_text(result: Any) -> str:
    """A text as it is, anything else as JSON where it has a JSON form, else as Python shows it."""
    if isinstance(result, str):
        text = result
    else:
        try:
            text = json.dumps(result, ensure_ascii=False)
        except (TypeError, ValueError):
            text = str(result)
    return text if len(text) <= _MAX_RESULT else f"{text[:_MAX_RESULT]} ... ({len(text):,} characters in all)"
