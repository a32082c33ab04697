"""An answer in the shape of OpenAI's Responses API: a response of output items, whole or as typed events."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_nb.outputs import Choice, GenerationOutput, StreamItem, Timings, TokenLogprob, Usage
from vllm_nb.server.blocks import Block, Blocks
from vllm_nb.server.errors import streamed_error
from vllm_nb.server.openai_format import logprob_dict, to_json
from vllm_nb.server.responses_items import Item, new_id

if TYPE_CHECKING:
    from vllm_nb.text.tokenizer import Tokenizer

_KINDS = {"reasoning": "reasoning", "text": "message", "tool_call": "function_call", "tool_run": "mcp_call"}
_STATUSES = {"length": "incomplete", "abort": "cancelled", "error": "failed"}
_LAST_EVENTS = {"completed": "response.completed", "failed": "response.failed"}


@dataclass(kw_only=True)
class ResponseFormat:
    """How one response is written. echo: what it repeats of its request. on_change: called with the body when the
    response begins and ends."""

    id: str
    model: str
    tokenizer: "Tokenizer"
    echo: dict[str, Any]
    on_change: Callable[[dict[str, Any]], None]
    created: int = field(default_factory=lambda: int(time.time()))
    _blocks: Blocks = field(default_factory=Blocks, init=False)
    _ids: list[str] = field(default_factory=list, init=False)  # of the items, by the numbers of their blocks
    _events: int = field(default=0, init=False)
    _over: bool = field(default=False, init=False)
    _last: StreamItem | None = field(default=None, init=False)

    end = b""

    @contextmanager
    def lifetime(self) -> Iterator[None]:
        """While it is being answered. One that nobody waited for to the end was cancelled."""
        self.on_change(self._body("in_progress", []))
        status = "cancelled"
        try:
            yield
        except Exception:
            status = "failed"
            raise
        finally:
            if not self._over:
                self._change(self._body(status, self._items(self._blocks.all, "incomplete")))

    def first_chunks(self) -> list[dict[str, Any]]:
        body = self._body("in_progress", [])
        return [self._event("response.created", response=body), self._event("response.in_progress", response=body)]

    def chunks(self, prompt: int, items: Sequence[StreamItem]) -> list[dict[str, Any]]:
        found = []
        for item in items:
            for change, block, piece in self._blocks.add(item):
                if change == "start":
                    found += self._start(block)
                elif change == "delta":
                    found.append(self._delta(block, piece))
                else:
                    cut = item.finish_reason in _STATUSES
                    found += self._stop(block, "incomplete" if cut else "completed")
            self._last = item
        return found

    def collect(self, prompt: int, items: Sequence[StreamItem]) -> None:
        self.chunks(prompt, items)

    def last_chunks(self, chunks: list[dict[str, Any]], usage: Usage, timings: Timings) -> list[dict[str, Any]]:
        assert self._last is not None
        body = self._ended(self._last, self._blocks.all, usage)
        kind = _LAST_EVENTS.get(body["status"], "response.incomplete")
        return [*chunks, self._event(kind, response=body)]

    def whole(self, outputs: Sequence[GenerationOutput], usage: Usage, timings: Timings) -> dict[str, Any]:
        choice = outputs[0].choices[0]
        calls = {call.id for call in choice.tool_calls}
        blocks = [block for block in self._blocks.all if block.kind != "tool_call" or block.call_id in calls]
        return self._ended(choice, blocks, usage)

    def event(self, chunk: dict[str, Any]) -> bytes:
        return f"event: {chunk['type']}\ndata: {to_json(chunk)}\n\n".encode()

    def error_event(self, error: BaseException) -> bytes:
        told = streamed_error(error)
        body = self._body("failed", self._items(self._blocks.all, "incomplete"))
        body["error"] = {"code": "server_error", "message": str(told)}
        self._change(body)
        return self.event(self._event("response.failed", response=body))

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._events += 1
        return {"type": kind, "sequence_number": self._events - 1, **fields}

    # The response

    def _body(self, status: str, output: list[Item]) -> dict[str, Any]:
        head = {"id": self.id, "object": "response", "created_at": self.created, "status": status, "model": self.model}
        return head | {"error": None, "incomplete_details": None, "output": output, "usage": None} | self.echo

    def _ended(self, how: StreamItem | Choice, blocks: Sequence[Block], usage: Usage) -> dict[str, Any]:
        status = _STATUSES.get(how.finish_reason or "", "completed")
        last = "completed" if status == "completed" else "incomplete"
        body = self._body(status, self._items(blocks, last)) | {"usage": _usage_dict(usage)}
        if status == "incomplete":
            body["incomplete_details"] = {"reason": "max_output_tokens"}
        self._change(body)
        return body

    def _change(self, body: dict[str, Any]) -> None:
        self._over = True
        self.on_change(body)

    def _items(self, blocks: Sequence[Block], last_status: str) -> list[Item]:
        """All are complete but, perhaps, the last."""
        items = [self._item(block, "completed") for block in blocks]
        return [*items[:-1], items[-1] | {"status": last_status}] if items else []

    def _item(self, block: Block, status: str) -> Item:
        head = {"id": self._ids[block.number], "type": _KINDS[block.kind], "status": status}
        if block.kind == "text":
            return head | {"role": "assistant", "content": [self._part(block)]}
        if block.kind == "reasoning":
            return head | {"summary": [], "content": [self._part(block)]}
        if block.run is None:
            return head | {"call_id": block.call_id, "name": block.name, "arguments": block.text}
        run = block.run
        result = {"error": run.output, "output": None} if run.is_error else {"error": None, "output": run.output}
        return head | {"server_label": run.server, "name": run.call.name, "arguments": run.call.arguments} | result

    def _part(self, block: Block) -> dict[str, Any]:
        if block.kind == "reasoning":
            return {"type": "reasoning_text", "text": block.text}
        return {
            "type": "output_text",
            "text": block.text,
            "annotations": [],
            "logprobs": self._logprobs(block.logprobs),
        }

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        def told(entry: TokenLogprob) -> dict[str, Any]:
            return logprob_dict(entry, self.tokenizer)

        return [told(entry) | {"top_logprobs": [told(other) for other in entry.top]} for entry in entries]

    # The events of an item

    def _start(self, block: Block) -> list[dict[str, Any]]:
        self._ids.append(new_id(_KINDS[block.kind]))
        item = self._item(block, "in_progress")
        if block.kind in ("text", "reasoning"):
            item["content"] = []
        added = self._event("response.output_item.added", output_index=block.number, item=item)
        if block.kind not in ("text", "reasoning"):
            return [added]
        return [added, self._event("response.content_part.added", **self._place(block), part=self._part(block))]

    def _delta(self, block: Block, piece: str) -> dict[str, Any]:
        if block.kind == "tool_call":
            where = {"item_id": self._ids[block.number], "output_index": block.number}
            return self._event("response.function_call_arguments.delta", **where, delta=piece)
        if block.kind == "reasoning":
            return self._event("response.reasoning_text.delta", **self._place(block), delta=piece)
        logprobs = self._logprobs(block.fresh_logprobs)
        return self._event("response.output_text.delta", **self._place(block), delta=piece, logprobs=logprobs)

    def _stop(self, block: Block, status: str) -> list[dict[str, Any]]:
        done = self._event  # in the order of the calls
        found = []
        if block.kind == "tool_call":
            where = {"item_id": self._ids[block.number], "output_index": block.number, "name": block.name}
            found.append(done("response.function_call_arguments.done", **where, arguments=block.text))
        elif block.kind == "reasoning":
            found.append(done("response.reasoning_text.done", **self._place(block), text=block.text))
        elif block.kind == "text":
            logprobs = self._logprobs(block.logprobs)
            found.append(done("response.output_text.done", **self._place(block), text=block.text, logprobs=logprobs))
        if block.kind in ("text", "reasoning"):
            found.append(done("response.content_part.done", **self._place(block), part=self._part(block)))
        item = self._item(block, status)
        return [*found, done("response.output_item.done", output_index=block.number, item=item)]

    def _place(self, block: Block) -> dict[str, Any]:
        return {"item_id": self._ids[block.number], "output_index": block.number, "content_index": 0}


def _usage_dict(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
