"""One streamed answer: server-sent events in, StreamItems out, and an interrupt that reaches the engine."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from vllm_nb.client.completion import Completion, RequestTimings
from vllm_nb.outputs import StreamItem, TokenLogprob, Usage

if TYPE_CHECKING:
    import httpx

    from vllm_nb.client.http import EngineClient


class ChatStream:
    """Iterates over an answer as it is generated; `completion` is the answer so far.

    Leaving it early, by `break`, an error or an interrupt, ends the request in the engine and marks the completion
    with finish_reason "abort".
    """

    def __init__(self, client: "EngineClient", path: str, body: Mapping[str, Any]):
        self.completion = Completion(model=str(body.get("model") or ""))
        self._client = client
        self._path = path
        self._body = body
        self._response: httpx.Response | None = None
        self._items: Iterator[StreamItem] = iter(())
        self._over = False

    @property
    def request_id(self) -> str:
        return self.completion.request_id

    def __enter__(self) -> Self:
        """Sends the request. Raises RequestError, QueueFullError, EngineDeadError."""
        response = self._client.send("POST", self._path, self._body, stream=True)
        self._response = response
        if response.status_code != 200:
            self._over = True
            raise self._client.error_of(response)
        self.completion.request_id = response.headers.get("x-request-id", "")
        self._items = self._read(response)
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamItem:
        if self._over:  # what had arrived before an abort is not wanted any more
            raise StopIteration
        try:
            return next(self._items)
        except KeyboardInterrupt:
            self.abort()
            raise

    def abort(self) -> None:
        """End the request in the engine, if it still runs; what has come stays in `completion`."""
        if self._over:
            return
        self._over = True
        self.completion.mark_aborted()
        try:
            if self.request_id:
                self._client.abort(self.request_id)
        finally:
            if self._response is not None:
                self._response.close()  # an engine that could not be asked sees the hang-up

    def _read(self, response: "httpx.Response") -> Iterator[StreamItem]:
        import httpx

        try:
            for event in _events(response.iter_bytes()):
                if "error" in event:
                    raise self._client.error(_status(event["error"]), event["error"])
                yield from self._take(event)
        except httpx.TransportError as error:
            if self._over:  # aborted meanwhile, perhaps by another thread: nothing is wrong
                return
            self._fail()
            raise self._client.gone(error) from None
        except Exception:
            self._fail()
            raise
        if any(choice.finish_reason is None for choice in self.completion.choices):
            self._fail()
            raise self._client.gone(EOFError("the answer broke off"))
        self._over = True
        response.close()

    def _fail(self) -> None:
        """What there is stays, as a completion that was cut off; there is nothing to abort any more."""
        self._over = True
        self.completion.mark_aborted()
        if self._response is not None:
            self._response.close()

    def _take(self, event: Mapping[str, Any]) -> Iterator[StreamItem]:
        completion = self.completion
        completion.request_id = event.get("id") or completion.request_id
        completion.model = event.get("model") or completion.model
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
            if item.text or item.token_ids or item.finish_reason or item.prompt_logprobs:
                yield item


def _events(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The data of each server-sent event. (Split on line feeds alone: httpx's `iter_lines` also splits on characters
    that may stand inside JSON text, such as U+2028.)"""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
            if data and data != b"[DONE]":  # read on to the end: an unfinished body costs the connection
                yield json.loads(data)


def _item(request_id: str, choice: Mapping[str, Any]) -> StreamItem:
    """From a choice of either dialect: chat has a delta, completions a text."""
    logprobs, token_ids = choice.get("logprobs") or {}, choice.get("token_ids") or []
    entries = _text_logprobs(logprobs, token_ids) if "tokens" in logprobs else logprobs.get("content")
    return StreamItem(
        request_id,
        choice.get("index", 0),
        (choice.get("delta") or {}).get("content") or choice.get("text") or "",
        token_ids,
        None if entries is None else [_logprob(entry) for entry in entries],
        choice.get("finish_reason"),
        choice.get("stop_reason"),
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
    return TokenLogprob(entry.get("token_id", -1), entry["token"], entry["logprob"], entry.get("rank"), top)


def _usage(usage: Mapping[str, Any]) -> Usage:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), cached)


_STATUS = {"engine_dead": 503, "queue_full": 503, "invalid_value": 400}


def _status(error: Any) -> int:
    """The HTTP status that the error would have had before the stream began."""
    return _STATUS.get(str(error.get("code")), 500) if isinstance(error, Mapping) else 500
