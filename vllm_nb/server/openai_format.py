"""OpenAI's shapes of an answer, as plain dictionaries: no model validation between a token and its client."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_nb.outputs import (
    LOWEST_LOGPROB,
    Choice,
    GenerationOutput,
    StreamItem,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    ToolRun,
    Usage,
)
from vllm_nb.server.errors import error_event
from vllm_nb.server.streaming import DONE

if TYPE_CHECKING:
    from vllm_nb.text.tokenizer import Tokenizer

to_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


@dataclass(kw_only=True)
class Format:
    """How one request's answer is written; `n` choices a prompt. Subclasses give the two dialects of a choice."""

    id: str
    model: str
    tokenizer: "Tokenizer"
    n: int = 1
    include_usage: bool = False
    with_ids: bool = False
    prompt_token_ids: Sequence[int] = ()  # with_ids: of the first prompt, for the first chunk
    with_prompt_logprobs: bool = True  # where the engine gives them
    created: int = field(default_factory=lambda: int(time.time()))
    _sent: dict[int, int] = field(default_factory=dict, init=False)  # characters of each choice that has begun

    kind = ""
    chunk_kind = ""
    end = DONE

    def first_chunks(self) -> list[dict[str, Any]]:
        return []

    def collect(self, prompt: int, items: Sequence[StreamItem]) -> None:
        """Nothing: outputs have all of it."""

    def event(self, chunk: dict[str, Any]) -> bytes:
        return f"data: {to_json(chunk)}\n\n".encode()

    def error_event(self, error: BaseException) -> bytes:
        return error_event(error)

    def chunks(self, prompt: int, items: Sequence[StreamItem]) -> list[dict[str, Any]]:
        """The chunks for the items of a step of the prompt with that number."""
        found = []
        for item in items:
            extras: dict[str, Any] = {"usage": None} if self.include_usage else {}
            entries = self._of_prompt(prompt, item)
            if self.with_prompt_logprobs and entries is not None:
                extras["prompt_logprobs"] = self._prompt_logprobs(entries)
            if self.with_ids and not self._sent:
                extras["prompt_token_ids"] = self.prompt_token_ids
            for choice in self._pieces(prompt * self.n + item.index, item):
                found.append(self._head(self.chunk_kind) | {"choices": [choice]} | extras)
                extras.pop("prompt_logprobs", None)
                extras.pop("prompt_token_ids", None)
        return found

    def last_chunks(self, chunks: list[dict[str, Any]], usage: Usage, timings: Timings) -> list[dict[str, Any]]:
        """`chunks`, the last of the answer, with the totals: in a chunk of their own where usage was asked for."""
        extras = {"timings": timings_dict(timings, usage)}
        if not self.include_usage:
            return [*chunks[:-1], chunks[-1] | extras]
        return [*chunks, self._head(self.chunk_kind) | {"choices": [], "usage": usage_dict(usage)} | extras]

    def whole(self, outputs: Sequence[GenerationOutput], usage: Usage, timings: Timings) -> dict[str, Any]:
        """The answer in one piece."""
        choices = [
            self._whole_choice(prompt * self.n + choice.index, choice)
            for prompt, output in enumerate(outputs)
            for choice in output.choices
        ]
        body = self._head(self.kind) | {"choices": choices, "usage": usage_dict(usage)}
        if self.with_ids:
            body["prompt_token_ids"] = outputs[0].prompt_token_ids
        if self.with_prompt_logprobs and outputs[0].prompt_logprobs is not None:
            body["prompt_logprobs"] = self._prompt_logprobs(outputs[0].prompt_logprobs)
        return body | {"timings": timings_dict(timings, usage)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _of_prompt(self, prompt: int, item: StreamItem) -> list[TokenLogprob | None] | None:
        """What the chunk for an item says of the prompt."""
        return item.prompt_logprobs

    def _pieces(self, index: int, item: StreamItem) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def _ending(self, part: StreamItem | Choice) -> dict[str, Any]:
        return {"finish_reason": part.finish_reason, "stop_reason": part.stop_reason}

    def _ids(self, part: StreamItem | Choice) -> dict[str, Any]:
        return {"token_ids": part.token_ids} if self.with_ids else {}

    def _logprob(self, entry: TokenLogprob) -> dict[str, Any]:
        body = logprob_dict(entry, self.tokenizer)
        return body | {"token_id": entry.token_id, "rank": entry.rank} if self.with_ids else body

    def _with_top(self, entry: TokenLogprob) -> dict[str, Any]:
        body = self._logprob(entry) | {"top_logprobs": [self._logprob(other) for other in entry.top]}
        if self.with_ids and entry.entropy is not None:
            body |= {"entropy": entry.entropy, "log_mass": entry.log_mass}
        return body

    def _prompt_logprobs(self, entries: Sequence[TokenLogprob | None]) -> list[dict[str, Any] | None]:
        return [None if entry is None else self._with_top(entry) for entry in entries]


def logprob_dict(entry: TokenLogprob, tokenizer: "Tokenizer") -> dict[str, Any]:
    """One token, without its alternatives."""
    data = tokenizer.token_bytes(entry.token_id) or entry.text.encode()
    return {"token": entry.text, "logprob": max(entry.logprob, LOWEST_LOGPROB), "bytes": list(data)}


class ChatFormat(Format):
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def _pieces(self, index: int, item: StreamItem) -> list[dict[str, Any]]:
        """As OpenAI: the role first, then text, then an empty delta with the finish_reason."""
        pieces = []
        if index not in self._sent:
            self._sent[index] = 0
            pieces.append(self._piece(index, {"role": "assistant", "content": ""}))
        delta = _said(item.reasoning, item.text, [_call_piece(piece) for piece in item.tool_calls], item.tool_runs)
        if delta or item.token_ids:
            logprobs = self._logprobs(item.logprobs)
            pieces.append(self._piece(index, delta or {"content": ""}, logprobs) | self._ids(item))
        if item.finish_reason is not None:
            pieces.append(self._piece(index, {}) | self._ending(item))
        return pieces

    def _piece(self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        calls = [call.to_dict() for call in choice.tool_calls]
        content = None if calls and not choice.text else choice.text
        message = {"role": "assistant", "content": content, "refusal": None} | _said(
            choice.reasoning, "", calls, choice.tool_runs
        )
        body = {"index": index, "message": message, "logprobs": self._logprobs(choice.logprobs)}
        return body | self._ending(choice) | self._ids(choice)

    def _logprobs(self, entries: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        return None if entries is None else {"content": [self._with_top(entry) for entry in entries], "refusal": None}


def _said(reasoning: str, text: str, tool_calls: list[dict[str, Any]], runs: Sequence[ToolRun]) -> dict[str, Any]:
    """What there is of these. mcp_calls, which is ours: what the server has executed."""
    executed = [
        {"id": run.call.id, "server": run.server, "name": run.call.name, "arguments": run.call.arguments}
        | {"output": run.output, "is_error": run.is_error}
        for run in runs
    ]
    said = {"reasoning_content": reasoning, "content": text, "tool_calls": tool_calls, "mcp_calls": executed}
    return {name: value for name, value in said.items() if value}


def _call_piece(piece: ToolCallDelta) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": piece.arguments}
    if piece.name is None:
        return {"index": piece.index, "function": function}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": {"name": piece.name} | function}


def totals(outputs: Sequence[GenerationOutput]) -> tuple[Usage, Timings]:
    """Over all prompts of one HTTP request."""
    usage, timings = Usage(), Timings(arrived=min(output.timings.arrived for output in outputs))
    for output in outputs:
        usage.prompt_tokens += output.usage.prompt_tokens
        usage.completion_tokens += output.usage.completion_tokens
        usage.cached_tokens += output.usage.cached_tokens
        usage.reasoning_tokens += output.usage.reasoning_tokens
    timings.scheduled = _known(min, [output.timings.scheduled for output in outputs])
    timings.first_token = _known(min, [output.timings.first_token for output in outputs])
    timings.finished = _known(max, [output.timings.finished for output in outputs])
    return usage, timings


def _known(choose: Any, values: list[float | None]) -> float | None:
    return choose((value for value in values if value is not None), default=None)


def usage_dict(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def timings_dict(timings: Timings, usage: Usage) -> dict[str, float | None]:
    """Ours: seconds since the request arrived, and the rate after the first token."""

    def since(moment: float | None) -> float | None:
        return None if moment is None else round(moment - timings.arrived, 6)

    rate = timings.decode_rate(usage.completion_tokens)
    return {
        "queued_s": since(timings.scheduled),
        "ttft_s": since(timings.first_token),
        "decode_tokens_per_s": None if rate is None else round(rate, 3),
        "total_s": since(timings.finished),
    }
