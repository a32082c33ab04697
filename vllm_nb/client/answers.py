"""Answers as they come over HTTP: bytes in, StreamItems and a Completion out. No I/O: both clients share this."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_nb.client.base import BaseClient
from vllm_nb.client.completion import Completion, RequestTimings
from vllm_nb.outputs import StreamItem, TokenLogprob, ToolCallDelta, Usage


class EventSplitter:
    """Server-sent events out of bytes that were cut anywhere. (Split on line feeds alone: httpx's `iter_lines` also
    splits on characters that may stand inside JSON text, such as U+2028.)"""

    def __init__(self) -> None:
        self._line: list[bytes] = []  # pieces of the last one: joined at each of them, a long line takes quadratic time

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """The data of each event that is complete now."""
        self._line.append(piece)
        if b"\n" not in piece:
            return
        *lines, rest = b"".join(self._line).split(b"\n")
        self._line = [rest]
        for line in lines:
            data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
            if data and data != b"[DONE]":  # read on to the end: an unfinished body costs the connection
                yield json.loads(data)


class AnswerReader:
    """Puts a completion together, from a stream's pieces or from a whole answer."""

    def __init__(self, client: BaseClient, completion: Completion):
        self.completion = completion
        self._client = client
        self._splitter = EventSplitter()

    def feed(self, piece: bytes) -> Iterator[StreamItem]:
        """What a piece of the stream says. Raises the exception that the server sends in its place."""
        for event in self._splitter.feed(piece):
            if "error" in event:
                raise self._client.error(error_status(event["error"]), event["error"])
            yield from self._take(event)

    def check_complete(self) -> None:
        """At the end of the stream. Raises EngineDeadError where it was cut off."""
        if any(choice.finish_reason is None for choice in self.completion.choices):
            raise self._client.gone(EOFError("the answer broke off"))

    def whole(self, body: Mapping[str, Any]) -> Completion:
        """From an answer that came in one piece: a stream of one event, but for where the text stands."""
        choices = [choice | {"delta": choice.get("message")} for choice in body.get("choices", ())]
        for _ in self._take({**body, "choices": choices}):
            continue
        return self.completion

    def _take(self, event: Mapping[str, Any]) -> Iterator[StreamItem]:
        completion = self.completion
        completion.request_id = event.get("id") or completion.request_id
        completion.model = event.get("model") or completion.model
        completion.prompt_token_ids = event.get("prompt_token_ids") or completion.prompt_token_ids
        if event.get("usage"):
            completion.usage = _usage(event["usage"])
        if event.get("timings"):
            completion.timings = RequestTimings(**{n: event["timings"].get(n) for n in RequestTimings.__slots__})
        prompt_logprobs = event.get("prompt_logprobs")
        for choice in event.get("choices", ()):
            item = _item(completion.request_id, choice)
            if prompt_logprobs is not None:
                item.prompt_logprobs = [None if entry is None else _logprob(entry) for entry in prompt_logprobs]
                prompt_logprobs = None
            completion.add(item)
            if _says_something(item):
                yield item


def _says_something(item: StreamItem) -> bool:
    return bool(
        item.text or item.token_ids or item.finish_reason or item.prompt_logprobs or item.reasoning or item.tool_calls
    )


def _item(request_id: str, choice: Mapping[str, Any]) -> StreamItem:
    """From a choice of either dialect: chat has a delta, completions a text."""
    logprobs, token_ids = choice.get("logprobs") or {}, choice.get("token_ids") or []
    old_shape = "tokens" in logprobs and "content" not in logprobs
    entries = _text_logprobs(logprobs, token_ids) if old_shape else logprobs.get("content")
    delta = choice.get("delta") or {}
    return StreamItem(
        request_id,
        choice.get("index", 0),
        delta.get("content") or choice.get("text") or "",
        token_ids,
        None if entries is None else [_logprob(entry) for entry in entries],
        choice.get("finish_reason"),
        choice.get("stop_reason"),
        reasoning=delta.get("reasoning_content") or delta.get("reasoning") or "",
        tool_calls=[_tool_call(place, call) for place, call in enumerate(delta.get("tool_calls") or ())],
    )


def _tool_call(place: int, call: Mapping[str, Any]) -> ToolCallDelta:
    """A piece of a call; whole calls are not numbered but stand in order."""
    function = call.get("function") or {}
    return ToolCallDelta(
        call.get("index", place), call.get("id"), function.get("name"), function.get("arguments") or ""
    )


def _text_logprobs(logprobs: Mapping[str, Any], token_ids: list[int]) -> list[dict[str, Any]]:
    """The parallel lists of the completions dialect as chat's entries; it has the chosen token among the top ones."""
    ids = token_ids or [-1] * len(logprobs["tokens"])  # as servers give them that know no return_token_ids
    columns = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], ids, strict=True)
    return [
        {"token": token, "logprob": logprob, "token_id": token_id, "top_logprobs": _top(top)}
        for token, logprob, top, token_id in columns
    ]


def _top(logprobs: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"token": token, "logprob": logprob} for token, logprob in logprobs.items()]


def _logprob(entry: Mapping[str, Any]) -> TokenLogprob:
    top = [_logprob(other) for other in entry.get("top_logprobs", ())]
    for place, other in enumerate(top, start=1):
        other.rank = place
    shape = entry.get("entropy"), entry.get("log_mass")
    return TokenLogprob(entry.get("token_id", -1), entry["token"], entry["logprob"], entry.get("rank"), top, *shape)


def _usage(usage: Mapping[str, Any]) -> Usage:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return Usage(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), cached, reasoning)


_STATUS = {"engine_dead": 503, "queue_full": 503, "invalid_value": 400}


def error_status(error: Any) -> int:
    """The HTTP status that the error would have had before the stream began."""
    return _STATUS.get(str(error.get("code")), 500) if isinstance(error, Mapping) else 500
