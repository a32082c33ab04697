"""Chat messages as OpenAI and the Rust system define them: a role, and text or a list of parts."""

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
class ChatMessage:
    """One turn. `content` is a text or parts; plain strings among the parts count as text."""

    role: str
    content: str | tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise RequestError(f"unknown role {self.role!r} in a message; use one of {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            if not isinstance(self.content, Iterable) or isinstance(self.content, Mapping | bytes):
                raise RequestError(f"content of the {self.role} message must be text or parts, not {self.content!r}")
            object.__setattr__(self, "content", tuple(_part(part) for part in self.content))

    @classmethod
    def from_any(cls, message: "ChatMessage | Mapping[str, Any]") -> "ChatMessage":
        """A ChatMessage, or the OpenAI dictionary of one."""
        if isinstance(message, ChatMessage):
            return message
        if not isinstance(message, Mapping):
            raise RequestError(
                f"a message must be a ChatMessage or a dictionary with role and content, not {message!r}"
            )
        missing = [key for key in ("role", "content") if message.get(key) is None]
        if missing:
            raise RequestError(f"a message lacks {' and '.join(missing)}: {dict(message)!r}")
        return cls(message["role"], message["content"])

    @property
    def text(self) -> str:
        """The text parts joined; raises RequestError for an image, which only vision models take."""
        if isinstance(self.content, str):
            return self.content
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


def as_messages(messages: Any) -> list[ChatMessage]:
    """One conversation from a text (one user turn), a message, or a list of them. Raises RequestError when empty."""
    if isinstance(messages, str):
        messages = [ChatMessage("user", messages)]
    elif isinstance(messages, ChatMessage | Mapping):
        messages = [messages]
    conversation = [ChatMessage.from_any(message) for message in messages]
    if not conversation:
        raise RequestError("messages is empty: give at least one user message")
    return conversation
