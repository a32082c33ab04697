"""OpenAI's Responses API: /v1/responses, and the responses that are kept."""

import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from vllm_nb.messages import ChatMessage
from vllm_nb.server.answering import answer
from vllm_nb.server.errors import ApiError
from vllm_nb.server.host import EngineHost
from vllm_nb.server.openai_format import to_json
from vllm_nb.server.responses_format import ResponseFormat
from vllm_nb.server.responses_items import Item, as_items, as_messages
from vllm_nb.server.responses_requests import ResponsesRequest
from vllm_nb.server.responses_store import ResponseStore, Stored
from vllm_nb.server.tool_loop import HEADER, converse


def create_router(host: EngineHost) -> APIRouter:
    """The routes over the engine of `host`."""
    router = APIRouter(prefix="/v1/responses")
    store = ResponseStore()

    @router.post("")
    async def create(body: ResponsesRequest, request: Request) -> Response:
        """Answer an input, going on from an earlier response where one is named."""
        body.check()
        engine = host.require_engine(body.model)
        earlier = _earlier(store, body.previous_response_id)
        fresh = as_items(body.input)
        messages = _conversation(body.instructions, [*(earlier.items if earlier else ())], fresh)
        mcp = body.mcp or request.headers.get(HEADER)
        stream = await converse(engine, host.mcp, mcp, body.sampling_params(), messages, body.options())
        form = ResponseFormat(
            id=f"resp_{uuid.uuid4().hex}",
            model=engine.model_name,
            tokenizer=engine.tokenizer,
            echo=body.echo(),
            on_change=_keeper(store, earlier, fresh) if body.store is not False else lambda _: None,
        )
        return await answer(
            host, request, [stream], form, streamed=bool(body.stream), request_id=form.id, during=form.lifetime()
        )

    @router.get("/{response_id}")
    async def retrieve(response_id: str, stream: bool = False) -> dict[str, Any]:
        """A response as it is now."""
        if stream:
            raise ApiError(400, "stored responses are not streamed: leave stream out", "unsupported_parameter")
        return store.get(response_id).body

    @router.delete("/{response_id}")
    async def delete(response_id: str) -> dict[str, Any]:
        """Forget a response."""
        store.delete(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @router.post("/{response_id}/cancel")
    async def cancel(response_id: str) -> dict[str, Any]:
        """End a response that is being generated."""
        stored = store.get(response_id)
        if not host.abort(response_id):
            message = f"the response is {stored.body['status']}: only one in progress can be cancelled"
            raise ApiError(400, message, "not_in_progress")
        return stored.body | {"status": "cancelled"}

    @router.get("/{response_id}/input_items")
    async def input_items(
        response_id: str,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> dict[str, Any]:
        """What the model was given, a page at a time."""
        items = store.get(response_id).context[:: 1 if order == "asc" else -1]
        if after is not None:
            ids = [item["id"] for item in items]
            if after not in ids:
                raise ApiError(400, f"after: there is no item {after[:80]!r}", "invalid_value", param="after")
            items = items[ids.index(after) + 1 :]
        page = items[:limit]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return {"object": "list", "data": page, **ends, "has_more": len(items) > limit}

    return router


def _earlier(store: ResponseStore, response_id: str | None) -> Stored | None:
    if response_id is None:
        return None
    stored = store.get(response_id)
    if stored.body["status"] == "in_progress":
        message = "previous_response_id: that response is still in progress; wait for its end, or cancel it"
        raise ApiError(400, message, "response_in_progress", param="previous_response_id")
    return stored


def _conversation(instructions: str | None, earlier: list[Item], fresh: list[Item]) -> list[ChatMessage]:
    """Instructions are this response's alone. Templates take one system message, and only as the first."""
    messages = [*as_messages(earlier), *as_messages(fresh)]
    if instructions is None:
        return messages
    if messages and messages[0].role in ("system", "developer"):
        instructions = f"{instructions}\n\n{messages.pop(0).text}"
    return [ChatMessage("system", instructions), *messages]


def _keeper(store: ResponseStore, earlier: Stored | None, fresh: list[Item]) -> Callable[[dict[str, Any]], None]:
    """Keeps a response's body in the store, with what it was made from."""
    context = [*(earlier.items if earlier else ()), *fresh]
    size = len(to_json(fresh)) + (earlier.num_bytes if earlier else 0)

    def keep(body: dict[str, Any]) -> None:
        if body["status"] == "in_progress" or body["id"] in store:  # else it was deleted meanwhile
            store.put(Stored(body, context, size))

    return keep
