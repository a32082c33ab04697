"""What may be asked of Anthropic's routes, and what it means in our words.

Content is read block by block. Unknown fields are ignored, as Anthropic does for most; what would change the answer and
cannot be honoured (images, documents that are no text, tools that run at Anthropic) is refused.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vllm_nb.errors import RequestError
from vllm_nb.messages import ChatMessage, ImagePart, Part, TextPart, ToolCall
from vllm_nb.sampling import SamplingParams
from vllm_nb.server.said import Said

MAX_MESSAGES = 100_000
_EFFORTS = {"max": "xhigh"}  # Anthropic's names that are not ours

Blocks = list[dict[str, Any]]


class Turn(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class Thinking(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]


class OutputConfig(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: dict[str, Any] | None = None


class CountTokensRequest(BaseModel):
    """POST /v1/messages/count_tokens."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = None
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | Blocks | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    mcp: str | None = None  # ours: what becomes of the tools of MCP servers

    def conversation(self) -> list[ChatMessage]:
        """Raises RequestError naming the block that cannot be taken."""
        found = []
        if self.system:
            found.append(ChatMessage("system", _text_of(self.system, "system")))
        for i, turn in enumerate(self.messages):
            found += _turn(turn, f"messages[{i}]")
        if found[-1].role == "assistant":
            raise RequestError("messages must end with the user's turn: continuing the assistant's is not supported")
        return found

    def options(self) -> dict[str, Any]:
        """Fields of ChatOptions. Without `thinking` there is none, as Anthropic has it."""
        thinks = self.thinking is not None and self.thinking.type != "disabled"
        options: dict[str, Any] = {"enable_thinking": thinks, "include_reasoning": thinks}
        if self.output_config is not None and self.output_config.effort is not None:
            options["reasoning_effort"] = _EFFORTS.get(self.output_config.effort, self.output_config.effort)
        if self.tools:
            options["tools"] = [_tool(tool) for tool in self.tools]
        if self.tool_choice is not None:
            options["tool_choice"] = _choice(self.tool_choice)
            options["parallel_tool_calls"] = not self.tool_choice.get("disable_parallel_tool_use")
        return options


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages."""

    max_tokens: int
    stream: bool = False
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None  # ours

    def sampling_params(self) -> SamplingParams:
        """Raises RequestError naming the field."""
        names = ("max_tokens", "temperature", "top_p", "top_k", "seed")
        values: dict[str, Any] = {name: value for name in names if (value := getattr(self, name)) is not None}
        values |= {"stop": self.stop_sequences, "structured_outputs": self._structure()}
        try:
            return SamplingParams(**values)
        except ValueError as error:
            raise RequestError(str(error)) from None

    def _structure(self) -> dict[str, Any] | None:
        form = None if self.output_config is None else self.output_config.format
        match form:
            case None:
                return None
            case {"type": "json_schema", "schema": dict(schema)}:
                return {"json": schema}
        raise RequestError('output_config.format must be {"type": "json_schema", "schema": {...}}')


def _turn(turn: Turn, where: str) -> Iterator[ChatMessage]:
    """The results of tools are turns of their own with us, before what else the user says."""
    if isinstance(turn.content, str):
        yield ChatMessage(turn.role, turn.content)
    elif turn.role == "system":
        yield ChatMessage("system", _text_of(turn.content, where))
    elif turn.role == "assistant":
        yield from _assistant(turn.content, where)
    else:
        parts: list[Part] = []
        for i, block in enumerate(turn.content):
            if block.get("type") == "tool_result":
                yield _tool_result(block, f"{where}.content[{i}]")
            else:
                parts.append(_part(block, f"{where}.content[{i}]"))
        if parts or not turn.content:
            yield ChatMessage("user", tuple(parts))


def _assistant(blocks: Blocks, where: str) -> Iterator[ChatMessage]:
    """One message, or more where the server had run tools on the way: their results are turns between."""
    said = Said()
    for i, block in enumerate(blocks):
        match block:
            case {"type": "mcp_tool_result"}:
                yield from said.message()
                yield _tool_result(block, f"{where}.content[{i}]")
                said = Said()
            case {"type": "text", "text": str(piece)}:
                said.text.append(piece)
            case {"type": "thinking", "thinking": str(piece)}:
                said.thoughts.append(piece)
            case {"type": "redacted_thinking"}:
                continue
            case {"type": "tool_use" | "mcp_tool_use", "id": str(key), "name": str(name), "input": dict(arguments)}:
                said.calls.append(ToolCall(key, name, json.dumps(arguments, ensure_ascii=False)))
            case _:
                raise _refused(block, f"{where}.content[{i}]", "text, thinking, tool_use")
    yield from said.message()


def _tool_result(block: dict[str, Any], where: str) -> ChatMessage:
    call_id, content = block.get("tool_use_id"), block.get("content") or ""
    if not isinstance(call_id, str) or not isinstance(content, str | list):
        raise RequestError(f"{where}: a tool_result has tool_use_id, a text, and content, a text or blocks")
    if isinstance(content, list):
        content = tuple(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    if block.get("is_error"):
        content = (TextPart("Error: "), *([TextPart(content)] if isinstance(content, str) else content))
    return ChatMessage("tool", content, tool_call_id=call_id)


def _part(block: Any, where: str) -> Part:
    """Of a user's turn, or of a tool's result."""
    match block:
        case {"type": "text", "text": str(text)}:
            return TextPart(text)
        case {"type": "image", "source": {"type": "base64", "media_type": str(kind), "data": str(data)}}:
            return ImagePart(f"data:{kind};base64,{data}")
        case {"type": "image", "source": {"type": "url", "url": str(url)}}:
            return ImagePart(url)
        case {"type": "document", "source": {"type": "text", "data": str(text)}}:
            return TextPart(text)
    raise _refused(block, where, "text, image, tool_result, and document with a text")


def _text_of(content: str | Blocks, where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for i, block in enumerate(content):
        if block.get("type") != "text" or not isinstance(block.get("text"), str):
            raise _refused(block, f"{where}[{i}]", "text")
        texts.append(block["text"])
    return "\n".join(texts)


def _refused(block: Any, where: str, supported: str) -> RequestError:
    kind = block.get("type") if isinstance(block, dict) else block
    return RequestError(
        f"{where}: {str(kind)[:80]!r} is no complete block of a type that is supported here ({supported})"
    )


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """As OpenAI has it."""
    if tool.get("type") not in (None, "custom"):
        raise RequestError(
            f"tools: {str(tool['type'])[:80]!r} runs at Anthropic and is not supported here; give tools with name, "
            "description and input_schema"
        )
    function = {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
        "strict": tool.get("strict"),
    }
    return {"type": "function", "function": function}


def _choice(choice: dict[str, Any]) -> Any:
    match choice:
        case {"type": "auto" | "none" as kind}:
            return kind
        case {"type": "any"}:
            return "required"
        case {"type": "tool", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
    raise RequestError(
        'tool_choice must be {"type": "auto"}, {"type": "any"}, {"type": "none"} or {"type": "tool", "name": ...}, '
        f"not {str(choice)[:80]}"
    )
