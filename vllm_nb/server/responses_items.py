"""The items of the Responses API as turns of a conversation: messages, calls and their outputs, reasoning."""

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from vllm_nb.errors import RequestError
from vllm_nb.messages import ChatMessage, ImagePart, Part, TextPart, ToolCall
from vllm_nb.server.said import Said

Item = dict[str, Any]

_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
    "mcp_call": "mcp",
}


def new_id(kind: str) -> str:
    """An id as OpenAI makes them, for an item of this type."""
    return f"{_PREFIXES.get(kind, 'item')}_{uuid.uuid4().hex}"


def as_items(given: str | Sequence[Item]) -> list[Item]:
    """The input as items, each with its type and an id. Raises RequestError for one that is not supported."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    items = []
    for i, item in enumerate(given):
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind not in ("mcp_list_tools", *_PREFIXES):
            supported = ", ".join(_PREFIXES)
            raise RequestError(
                f"input[{i}]: items of type {str(kind)[:80]!r} are not supported; supported are {supported}"
            )
        if kind == "message" and isinstance(item.get("content"), str):
            part = "output_text" if item.get("role") == "assistant" else "input_text"
            item = item | {"content": [{"type": part, "text": item["content"]}]}
        items.append({"id": new_id(str(kind))} | item | {"type": kind})
    return items


def as_messages(items: Sequence[Item]) -> list[ChatMessage]:
    """A conversation. What the assistant said in a row, its reasoning and its calls included, is one turn.

    Raises RequestError saying which item is wrong."""
    return list(_turns(items))


def _turns(items: Sequence[Item]) -> Iterator[ChatMessage]:
    said = Said()
    for i, item in enumerate(items):
        where = f"input[{i}]"
        match item:
            case {"type": "message", "role": "assistant", "content": list(parts)}:
                if said.calls:
                    yield from said.message()
                    said = Said()
                said.text.append("".join(part.text for part in _parts(parts, where) if isinstance(part, TextPart)))
            case {"type": "reasoning"}:
                said.thoughts.append(_thoughts(item))
            case {"type": "function_call", "call_id": str(key), "name": str(name), "arguments": str(arguments)}:
                said.calls.append(ToolCall(key, name, arguments))
            case {"type": "mcp_call", "id": str(key), "name": str(name), "arguments": str(arguments)}:
                said.calls.append(ToolCall(key, name, arguments))
                yield from said.message()
                said = Said()
                yield ChatMessage("tool", _mcp_result(item), tool_call_id=key)
            case {"type": "message" | "function_call_output"}:
                yield from said.message()
                said = Said()
                yield _turn(item, where)
            case {"type": "mcp_list_tools"}:
                continue
            case _:
                raise RequestError(f"{where}: this {item['type']} lacks a field, or one has the wrong type")
    yield from said.message()


def _turn(item: Item, where: str) -> ChatMessage:
    match item:
        case {"type": "message", "role": "user" | "system" | "developer" as role, "content": list(parts)}:
            return ChatMessage(role, tuple(_parts(parts, where)))
        case {"type": "function_call_output", "call_id": str(key), "output": str(output)}:
            return ChatMessage("tool", output, tool_call_id=key)
        case {"type": "function_call_output", "call_id": str(key), "output": list(parts)}:
            return ChatMessage("tool", tuple(_parts(parts, where)), tool_call_id=key)
        case {"type": "message"}:
            raise RequestError(f"{where}: a message has a role (user, assistant, system, developer) and content")
    raise RequestError(f"{where}: a function_call_output has call_id, a text, and output, a text or parts")


def _parts(parts: Sequence[Any], where: str) -> Iterator[Part]:
    for i, part in enumerate(parts):
        match part:
            case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
                yield TextPart(text)
            case {"type": "refusal", "refusal": str(text)}:
                yield TextPart(text)
            case {"type": "input_image", "image_url": str(url)}:
                yield ImagePart(url)
            case _:
                kind = part.get("type") if isinstance(part, dict) else part
                raise RequestError(
                    f"{where}.content[{i}]: {str(kind)[:80]!r} is no complete part of a type that is supported here "
                    "(input_text, output_text, input_image with image_url)"
                )


def _thoughts(item: Item) -> str:
    """The reasoning itself, or, from other servers, its summary."""
    entries = item.get("content") or item.get("summary") or ()
    return "".join(str(entry.get("text") or "") for entry in entries if isinstance(entry, dict))


def _mcp_result(item: Item) -> str:
    return str(item.get("output") or item.get("error") or "")
