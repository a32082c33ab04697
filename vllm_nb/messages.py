"""Chat messages as OpenAI and the Rust system define them: a role, and text or a list of parts."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_nb.errors import RequestError

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image by http(s) URL, `data:` URI (base64) or path."""

    image_url: str


Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function the model wants called. `arguments`: JSON, as the model wrote it."""

    id: str
    name: str
    arguments: str

    @classmethod
    def from_any(cls, call: "ToolCall | Mapping[str, Any]") -> "ToolCall":
        """A ToolCall, or the OpenAI dictionary of one; its arguments may be an object, too."""
        match call:
            case ToolCall():
                return call
            case {"function": {"name": str(name), "arguments": str() | dict() | None as arguments}}:
                text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
                return cls(str(call.get("id") or ""), name, text)
        raise RequestError(
            f'a tool call must be {{"id", "type": "function", "function": {{"name", "arguments"}}}}, not {call!r}'
        )

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn. `content` is a text or parts; plain strings among the parts count as text. It may be None in an
    assistant's turn that calls tools.

    tool_calls, reasoning_content: what else an assistant's turn held. tool_call_id: the call that a tool's turn
    answers. name: of the tool, or of the speaker where a template shows it.
    """

    role: str
    content: str | tuple[Part, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise RequestError(f"unknown role {self.role!r} in a message; use one of {', '.join(ROLES)}")
        object.__setattr__(self, "tool_calls", _tool_calls(self.tool_calls, self.role))
        for name in ("tool_call_id", "name", "reasoning_content"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise RequestError(f"{name} of the {self.role} message must be a text, not {value!r}")
        if self.content is None and not self.tool_calls and self.reasoning_content is None:
            raise RequestError(f"the {self.role} message lacks content")
        if self.content is not None and not isinstance(self.content, str):
            if not isinstance(self.content, Iterable) or isinstance(self.content, Mapping | bytes):
                raise RequestError(f"content of the {self.role} message must be text or parts, not {self.content!r}")
            object.__setattr__(self, "content", tuple(_part(part) for part in self.content))

    @classmethod
    def from_any(cls, message: "ChatMessage | Mapping[str, Any]") -> "ChatMessage":
        """A ChatMessage, or the OpenAI dictionary of one. What else such a dictionary may hold is ignored."""
        if isinstance(message, ChatMessage):
            return message
        if not isinstance(message, Mapping):
            raise RequestError(
                f"a message must be a ChatMessage or a dictionary with role and content, not {message!r}"
            )
        calls, reasoning = message.get("tool_calls") or (), message.get("reasoning_content", message.get("reasoning"))
        missing = [key for key in ("role", "content") if message.get(key) is None]
        if "role" in missing or (missing and not calls and reasoning is None):
            raise RequestError(f"a message lacks {' and '.join(missing)}: {dict(message)!r}")
        told = message.get("tool_call_id"), message.get("name")
        return cls(message["role"], message.get("content"), calls, *told, reasoning)

    def to_dict(self) -> dict[str, Any]:
        """The OpenAI dictionary, without what is not there."""
        content = self.content
        parts = [_part_dict(part) for part in content] if isinstance(content, tuple) else content
        body: dict[str, Any] = {"role": self.role, "content": parts}
        if self.tool_calls:
            body["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        for name in ("tool_call_id", "name", "reasoning_content"):
            if getattr(self, name) is not None:
                body[name] = getattr(self, name)
        return body

    @property
    def text(self) -> str:
        """The text parts joined; raises RequestError for an image, which only vision models take."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        if any(isinstance(part, ImagePart) for part in self.content):
            raise RequestError("this model takes text only: images need a vision model, and none is supported yet")
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


def _part(part: Any) -> Part:
    match part:
        case TextPart() | ImagePart():
            return part
        case str():
            return TextPart(part)
        case {"type": "text", "text": str(text)}:
            return TextPart(text)
        case {"type": "image_url", "image_url": {"url": str(url)}} | {"type": "image_url", "image_url": str(url)}:
            return ImagePart(url)
    raise RequestError(f"unknown message part {part!r}; use a text or image_url part")


def _part_dict(part: Part) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return {"type": "image_url", "image_url": {"url": part.image_url}}
    return {"type": "text", "text": part.text}


def _tool_calls(calls: Any, role: str) -> tuple[ToolCall, ...]:
    if not isinstance(calls, Iterable) or isinstance(calls, str | Mapping):
        raise RequestError(f"tool_calls of the {role} message must be a list, not {calls!r}")
    checked = tuple(ToolCall.from_any(call) for call in calls)
    if checked and role != "assistant":
        raise RequestError(f"tool_calls belong to the assistant's messages, not to the {role}'s")
    return checked


def as_messages(messages: Any) -> list[ChatMessage]:
    """One conversation from a text (one user turn), a message, or a list of them. Raises RequestError when empty."""
    if isinstance(messages, str):
        messages = [ChatMessage("user", messages)]
    elif isinstance(messages, ChatMessage | Mapping):
        messages = [messages]
    if not isinstance(messages, Iterable) or isinstance(messages, bytes):
        raise RequestError(f"messages must be a text, a message or a list of messages, not {messages!r}")
    conversation = [ChatMessage.from_any(message) for message in messages]
    if not conversation:
        raise RequestError("messages is empty: give at least one user message")
    return conversation
