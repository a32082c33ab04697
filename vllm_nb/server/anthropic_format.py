"""An answer in Anthropic's shape: a message of content blocks, whole or as events."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_nb.outputs import Choice, GenerationOutput, StreamItem, Timings, Usage
from vllm_nb.server.blocks import Block, Blocks
from vllm_nb.server.errors import anthropic_shape, streamed_error
from vllm_nb.server.openai_format import to_json

PING = {"type": "ping"}
_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event, with its name beside it."""
    return f"event: {body['type']}\ndata: {to_json(body)}\n\n".encode()


@dataclass(kw_only=True)
class MessageFormat:
    """How one message is written. prompt_tokens: for the beginning of a stream, when no more is known."""

    id: str
    model: str
    prompt_tokens: int
    _blocks: Blocks = field(default_factory=Blocks, init=False)
    _shift: int = field(default=0, init=False)  # a tool that was run is one block with us, two with Anthropic
    _last: StreamItem | None = field(default=None, init=False)

    end = b""

    def first_chunks(self) -> list[dict[str, Any]]:
        usage = _usage_dict(Usage(prompt_tokens=self.prompt_tokens))
        return [{"type": "message_start", "message": self._message([], None, None, usage)}]

    def chunks(self, prompt: int, items: Sequence[StreamItem]) -> list[dict[str, Any]]:
        found = []
        for item in items:
            for change, block, piece in self._blocks.add(item):
                found += self._events(change, block, piece)
            self._last = item
        return found

    def collect(self, prompt: int, items: Sequence[StreamItem]) -> None:
        for item in items:
            for _ in self._blocks.add(item):
                continue

    def last_chunks(self, chunks: list[dict[str, Any]], usage: Usage, timings: Timings) -> list[dict[str, Any]]:
        assert self._last is not None
        reason, sequence = _stop(self._last)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        ending = {"type": "message_delta", "delta": delta, "usage": _usage_dict(usage)}
        return [*chunks, ending, {"type": "message_stop"}]

    def whole(self, outputs: Sequence[GenerationOutput], usage: Usage, timings: Timings) -> dict[str, Any]:
        choice = outputs[0].choices[0]
        whole_calls = {call.id for call in choice.tool_calls}
        blocks = (b for b in self._blocks.all if b.kind != "tool_call" or b.call_id in whole_calls)
        content = [part for block in blocks for part in _content(block)]
        return self._message(content, *_stop(choice), _usage_dict(usage))

    def event(self, chunk: dict[str, Any]) -> bytes:
        return event(chunk)

    def error_event(self, error: BaseException) -> bytes:
        return event(anthropic_shape(streamed_error(error)))

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, sequence: str | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage,
        }

    def _events(self, change: str, block: Block, piece: str) -> list[dict[str, Any]]:
        index = block.number + self._shift
        if block.kind == "tool_run":
            if change == "stop":
                return []
            self._shift += 1
            whole = [(index + i, part) for i, part in enumerate(_content(block))]
            return [event for i, part in whole for event in (_start(i, part), _end(i))]
        if change == "start":
            empty = _content(Block(block.kind, index, "", block.call_id, block.name))[0]
            return [_start(index, empty), PING] if index == 0 else [_start(index, empty)]
        if change == "stop":
            return [_end(index)]
        delta = {
            "text": {"type": "text_delta", "text": piece},
            "reasoning": {"type": "thinking_delta", "thinking": piece},
            "tool_call": {"type": "input_json_delta", "partial_json": piece},
        }[block.kind]
        return [{"type": "content_block_delta", "index": index, "delta": delta}]


def _start(index: int, block: dict[str, Any]) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def _end(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def _content(block: Block) -> list[dict[str, Any]]:
    if block.kind == "reasoning":
        return [{"type": "thinking", "thinking": block.text, "signature": ""}]
    if block.kind == "tool_call":
        return [{"type": "tool_use", "id": block.call_id, "name": block.name, "input": _arguments(block.text)}]
    if block.run is not None:
        run, key = block.run, block.run.call.id
        use = {"type": "mcp_tool_use", "id": key, "name": run.call.name, "server_name": run.server}
        result = {"type": "mcp_tool_result", "tool_use_id": key, "is_error": run.is_error}
        content = [{"type": "text", "text": run.output}]
        return [use | {"input": _arguments(run.call.arguments)}, result | {"content": content}]
    return [{"type": "text", "text": block.text}]


def _arguments(text: str) -> Any:
    """The object that JSON text stands for; {} where the answer broke off within it."""
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return {}


def _stop(ended: StreamItem | Choice) -> tuple[str, str | None]:
    """stop_reason and stop_sequence."""
    if ended.finish_reason == "stop" and isinstance(ended.stop_reason, str):
        return "stop_sequence", ended.stop_reason
    return _STOP_REASONS.get(ended.finish_reason or "", "end_turn"), None


def _usage_dict(usage: Usage) -> dict[str, Any]:
    """What came from the cache is not among Anthropic's input tokens."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
