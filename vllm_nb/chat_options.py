"""What a chat request says besides its messages: tools, and how to think."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_nb.errors import RequestError
from vllm_nb.sampling import check_plain

MAX_TOOLS = 128
MAX_TOOL_NAME = 128
MAX_TOOL_DESCRIPTION = 64 * 1024
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
TEMPLATE_KWARGS = ("enable_thinking", "thinking", "reasoning_effort", "documents", "tools_in_user_message")

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call. parameters: the JSON schema of its arguments, an object.

    strict: its arguments are held to the schema whenever it is called.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: dict(_NO_PARAMETERS))
    strict: bool = False

    def __post_init__(self) -> None:
        name = self.name
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_TOOL_NAME or not _is_plain(name):
            raise RequestError(
                f"tools must have names of 1 to {MAX_TOOL_NAME} letters, digits, '_', '-' and '.', not {name!r}"
            )
        if not isinstance(self.description, str) or len(self.description) > MAX_TOOL_DESCRIPTION:
            raise RequestError(
                f"tools: the description of {name} must be a text of {MAX_TOOL_DESCRIPTION:,} characters"
            )
        if not isinstance(self.parameters, Mapping):
            raise RequestError(f"tools: the parameters of {name} must be a JSON schema, an object")
        try:
            check_plain(f"tools: the parameters of {name}", self.parameters)
        except ValueError as error:
            raise RequestError(str(error)) from None

    @classmethod
    def from_any(cls, tool: "Tool | Mapping[str, Any]") -> "Tool":
        """A Tool, or the OpenAI dictionary of one: {"type": "function", "function": {...}}, or flat as in Responses."""
        match tool:
            case Tool():
                return tool
            case {"type": "function", "function": {"name": name} as function}:
                pass
            case {"type": "function", "name": name}:
                function = dict(tool)
            case _:
                raise RequestError(
                    f'tools must be {{"type": "function", "function": {{"name", "parameters"}}}}, not {str(tool)[:80]}'
                )
        parameters = function.get("parameters")
        parameters = dict(_NO_PARAMETERS) if parameters is None else parameters
        return cls(name, function.get("description") or "", parameters, bool(function.get("strict")))

    def to_dict(self) -> dict[str, Any]:
        """As templates and the API have it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function | ({"strict": True} if self.strict else {})}


def _is_plain(name: str) -> bool:
    return name.isascii() and all(char.isalnum() or char in "_-." for char in name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """tools: what the model may call, as Tool or OpenAI's dictionaries. tool_choice: "auto", "none", "required", or
    {"type": "function", "function": {"name": ...}} for one of them. parallel_tool_calls: whether it may call several at
    once. enable_thinking: None: as the template has it by default. reasoning_effort: one of EFFORTS; "none" is
    enable_thinking=False. documents: for templates that cite them. template_kwargs: further variables of the template,
    out of TEMPLATE_KWARGS. include_reasoning: False leaves the reasoning out of the answer.

    Raises RequestError naming the field.
    """

    tools: tuple[Tool, ...] = ()
    tool_choice: str | Mapping[str, Any] | None = None
    parallel_tool_calls: bool = True
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool = True
    documents: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.tools, list | tuple) or len(self.tools) > MAX_TOOLS:
            raise RequestError(f"tools must be a list of at most {MAX_TOOLS} tools")
        tools = tuple(Tool.from_any(tool) for tool in self.tools)
        names = [tool.name for tool in tools]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise RequestError(f"tools must have different names; {twice!r} is there twice")
        object.__setattr__(self, "tools", tools)
        object.__setattr__(self, "tool_choice", _checked_choice(self.tool_choice, names))
        for name, kinds in _KINDS.items():
            if not isinstance(getattr(self, name), kinds):
                raise RequestError(f"{name} must be {kinds[0].__name__}, not {str(getattr(self, name))[:80]!r}")
        self._check_template_variables()
        if self.reasoning_effort is not None and self.reasoning_effort not in EFFORTS:
            efforts = ", ".join(EFFORTS)
            raise RequestError(f"reasoning_effort must be one of {efforts}, not {self.reasoning_effort!r}")

    def _check_template_variables(self) -> None:
        unknown = [str(name) for name in self.template_kwargs if name not in TEMPLATE_KWARGS]
        if unknown:
            allowed = ", ".join(TEMPLATE_KWARGS)
            raise RequestError(f"chat_template_kwargs must be out of {allowed}; not {', '.join(unknown)[:80]}")
        if not all(isinstance(document, Mapping) for document in self.documents):
            raise RequestError("documents must be a list of objects")
        try:
            check_plain("documents", self.documents)
            check_plain("chat_template_kwargs", self.template_kwargs)
        except ValueError as error:
            raise RequestError(str(error)) from None

    @property
    def named_tool(self) -> str | None:
        """The one tool that must be called."""
        choice = self.tool_choice
        return choice["function"]["name"] if isinstance(choice, Mapping) else None

    @property
    def usable_tools(self) -> tuple[Tool, ...]:
        """Those this answer may call."""
        if self.tool_choice == "none":
            return ()
        return tuple(tool for tool in self.tools if self.named_tool in (None, tool.name))

    @property
    def must_call(self) -> bool:
        return self.tool_choice == "required" or self.named_tool is not None

    def template_variables(self) -> dict[str, Any]:
        """What the chat template is told, besides the messages: only what was said, for templates ask what is
        defined."""
        variables = dict(self.template_kwargs)
        thinking = self.enable_thinking
        if thinking is None and self.reasoning_effort == "none":
            thinking = False
        if thinking is not None:
            variables |= {"enable_thinking": thinking, "thinking": thinking}  # DeepSeek calls it the latter
        if self.reasoning_effort not in (None, "none"):
            variables["reasoning_effort"] = self.reasoning_effort
        if self.documents:
            variables["documents"] = [dict(document) for document in self.documents]
        if self.tools:
            variables["tools"] = [tool.to_dict() for tool in self.tools]
        return variables


_KINDS: dict[str, tuple[type, ...]] = {
    "parallel_tool_calls": (bool,),
    "enable_thinking": (bool, type(None)),
    "include_reasoning": (bool,),
    "documents": (list, tuple),
    "template_kwargs": (dict, Mapping),
}


def _checked_choice(choice: Any, names: list[str]) -> str | dict[str, Any]:
    """auto, none, required, or a tool in the shape of the chat API."""
    match choice:
        case None | "auto":
            return "auto" if names else "none"
        case "none":
            return choice
        case "required" if names:
            return choice
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            if name in names:
                return {"type": "function", "function": {"name": name}}
            raise RequestError(
                f"tool_choice must name one of the tools ({', '.join(names) or 'none given'}), not {name}"
            )
        case "required":
            raise RequestError("tool_choice must not be 'required' without tools")
    raise RequestError(
        'tool_choice must be "auto", "none", "required" or {"type": "function", "function": {"name": ...}}, '
        f"not {str(choice)[:80]!r}"
    )
