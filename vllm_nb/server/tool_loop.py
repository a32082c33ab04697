"""An answer over several turns of the model, between which the server executes the calls of MCP tools."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from vllm_nb.chat_options import Tool
from vllm_nb.messages import ChatMessage, ToolCall
from vllm_nb.outputs import Choice, GenerationOutput, StreamItem, Timings, ToolCallDelta, ToolRun, Usage
from vllm_nb.sampling import SamplingParams
from vllm_nb.server.answering import submit
from vllm_nb.server.errors import ApiError
from vllm_nb.server.mcp_servers import McpServers
from vllm_nb.server.streaming import ItemStream

if TYPE_CHECKING:
    from vllm_nb.api import Engine
    from vllm_nb.streams import AsyncEngineStream

MAX_TURNS = 8  # in which tools may be called; after that the model has to answer

McpMode = Literal["inject", "execute", "off"]
MODES: tuple[McpMode, ...] = ("inject", "execute", "off")
HEADER = "x-vllm-nb-mcp"


async def converse(
    engine: "Engine",
    servers: McpServers | None,
    mode: str | None,
    params: SamplingParams,
    messages: Sequence[ChatMessage],
    options: dict[str, Any],
) -> ItemStream:
    """Queue a chat request, with what `offer` adds to its options. In mode "execute" the server also runs what the
    model calls of that. Raises ApiError, and what `submit` raises."""
    options, added = await offer(servers, mode, options)
    if mode == "execute" and added:
        if params.n != 1:
            raise ApiError(400, "n must be 1 where tools are executed", "invalid_value", param="n")
        return await ToolLoop.begin(engine, servers, params, messages, options, added)
    return (await submit(engine, params, [list(messages)], **options))[0]


async def offer(
    servers: McpServers | None, mode: str | None, options: dict[str, Any]
) -> tuple[dict[str, Any], frozenset[str]]:
    """The options with the tools of `servers`, and the names of these. Mode "off", and tool_choice "none", leave them
    out; a tool of the request hides one of its name. Raises ApiError."""
    if mode not in (None, *MODES):
        raise ApiError(
            400, f"mcp must be one of {', '.join(MODES)}, not {str(mode)[:80]!r}", "invalid_value", param="mcp"
        )
    if servers is None and mode == "execute":
        message = "mcp: no MCP servers are configured here; start the server with --mcp-config FILE"
        raise ApiError(400, message, "no_mcp_servers", param="mcp")
    if servers is None or mode == "off" or options.get("tool_choice") == "none":
        return options, frozenset()
    own = [Tool.from_any(tool) for tool in options.get("tools") or ()]
    taken = {tool.name for tool in own}
    added = {name: tool for name, (_, _, tool) in (await servers.tools()).items() if name not in taken}
    return options | {"tools": [*own, *added.values()]}, frozenset(added)


class ToolLoop:
    """As AsyncEngineStream, over all turns. Calls of tools are held back until their turn has ended: the executed ones
    reach the client as `tool_runs`; those of a turn in which any is not the server's to execute, as calls."""

    def __init__(
        self,
        engine: "Engine",
        servers: McpServers | None,
        params: SamplingParams,
        messages: Sequence[ChatMessage],
        options: dict[str, Any],
        usable: frozenset[str],
        stream: "AsyncEngineStream",
    ):
        self._engine, self._servers, self._usable = engine, servers, usable
        self._params, self._messages, self._options = params, [*messages], options
        self._stream = stream
        self._turns = 1
        self._held: list[ToolCallDelta] = []
        self._running: asyncio.Future[list[ToolRun]] | None = None
        self._aborted = self._finished = False
        first = stream.output
        choice = Choice(logprobs=None if params.logprobs is None else [])
        self.output = GenerationOutput(
            stream.request_id, [choice], Usage(), Timings(first.timings.arrived), first.prompt_token_ids
        )

    @classmethod
    async def begin(
        cls,
        engine: "Engine",
        servers: McpServers | None,
        params: SamplingParams,
        messages: Sequence[ChatMessage],
        options: dict[str, Any],
        usable: frozenset[str],
    ) -> "ToolLoop":
        """Queue the first turn."""
        (stream,) = await submit(engine, params, [list(messages)], **options)
        return cls(engine, servers, params, messages, options, usable, stream)

    @property
    def request_id(self) -> str:
        return self.output.request_id

    async def next_batch(self) -> list[StreamItem]:
        """As AsyncEngineStream's; between two turns, the item with what was executed."""
        if self._finished:
            raise StopAsyncIteration
        if self._running is not None:
            return [await self._next_turn(self._running)]
        items = []
        for item in await self._stream.next_batch():
            self._held += item.tool_calls
            item.tool_calls = []
            items.append(self._end_turn(item) if item.usage is not None else item)
        return items

    def cancel(self) -> None:
        """End it all; nothing more will come."""
        self._finished = True
        self._stream.cancel()
        if self._running is not None:
            self._running.cancel()

    def abort(self) -> None:
        """End it from outside; the answer so far is completed with finish_reason "abort"."""
        self._aborted = True
        self._stream.abort()
        if self._running is not None:
            self._running.cancel()

    def _end_turn(self, last: StreamItem) -> StreamItem:
        """The last item of a turn: made an ordinary one when another turn follows."""
        choice = self._stream.output.choices[0]
        self._add(self._stream.output)
        if self._goes_on(choice):
            self._running = asyncio.ensure_future(self._execute(choice.tool_calls))
            last.finish_reason = last.stop_reason = last.usage = last.timings = None
            self._held = []
            return last
        self._finished = True
        self.output.choices[0].tool_calls = choice.tool_calls
        last.tool_calls, self._held = self._held, []
        last.usage, last.timings = self.output.usage, self.output.timings
        return last

    def _goes_on(self, choice: Choice) -> bool:
        calls = choice.tool_calls
        if self._aborted or choice.finish_reason != "tool_calls" or not calls or self._tokens_left() == 0:
            return False
        return all(call.name in self._usable for call in calls)

    def _tokens_left(self) -> int | None:
        limit = self._params.max_tokens
        return None if limit is None else max(0, limit - self.output.usage.completion_tokens)

    async def _execute(self, calls: Sequence[ToolCall]) -> list[ToolRun]:
        assert self._servers is not None
        return list(await asyncio.gather(*(self._servers.run(call) for call in calls)))

    async def _next_turn(self, running: "asyncio.Future[list[ToolRun]]") -> StreamItem:
        """When the tools are done: queue the turn that is told of their results."""
        item = StreamItem(self.request_id, 0, "", [])
        try:
            item.tool_runs = await running
        except asyncio.CancelledError:
            if not self._aborted:
                raise
        self._running = None
        if self._aborted:
            self._finished = True
            choice = self.output.choices[0]
            choice.finish_reason = item.finish_reason = "abort"
            item.usage, item.timings = self.output.usage, self.output.timings
            return item
        self.output.choices[0].tool_runs += item.tool_runs
        self._messages.append(self._stream.output.choices[0].message)
        self._messages += [ChatMessage("tool", run.output, tool_call_id=run.call.id) for run in item.tool_runs]
        choice_now = "auto" if self._turns < MAX_TURNS else "none"  # what was required has been done
        params = replace(self._params, max_tokens=self._tokens_left(), min_tokens=0)
        (self._stream,) = await submit(
            self._engine, params, [self._messages], **(self._options | {"tool_choice": choice_now})
        )
        if self._aborted:  # while it was being queued: what was aborted then is the turn before
            self._stream.abort()
        self._turns += 1
        return item

    def _add(self, turn: GenerationOutput) -> None:
        """Usage, times and texts of a turn that has ended."""
        whole, choice, said = self.output, self.output.choices[0], turn.choices[0]
        whole.usage.prompt_tokens += turn.usage.prompt_tokens
        whole.usage.completion_tokens += turn.usage.completion_tokens
        whole.usage.cached_tokens += turn.usage.cached_tokens
        whole.usage.reasoning_tokens += turn.usage.reasoning_tokens
        times = whole.timings
        times.scheduled = times.scheduled or turn.timings.scheduled
        times.first_token = times.first_token or turn.timings.first_token
        times.finished = turn.timings.finished
        choice.text += said.text
        choice.reasoning += said.reasoning
        choice.token_ids += said.token_ids
        if choice.logprobs is not None:
            choice.logprobs += said.logprobs or []
        choice.finish_reason, choice.stop_reason = said.finish_reason, said.stop_reason
