"""The responses that can be asked for again and gone on from: as many as fit, in memory, the oldest forgotten first."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from vllm_nb.server.errors import ApiError
from vllm_nb.server.openai_format import to_json
from vllm_nb.server.responses_items import Item

MAX_RESPONSES = 1000
MAX_BYTES = 64 * 2**20  # of JSON


@dataclass(frozen=True)
class Stored:
    """body: the response as it is now. context: the items the model saw, those of earlier responses included.
    context_bytes: of their JSON."""

    body: dict[str, Any]
    context: list[Item]
    context_bytes: int

    @property
    def items(self) -> list[Item]:
        """What a response that goes on from this one has before its own input."""
        return [*self.context, *self.body["output"]]

    @property
    def num_bytes(self) -> int:
        return self.context_bytes + len(to_json(self.body))


class ResponseStore:
    """Used from the event loop alone."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES):
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._stored: OrderedDict[str, tuple[Stored, int]] = OrderedDict()
        self._bytes = 0

    def __contains__(self, key: str) -> bool:
        return key in self._stored

    def put(self, stored: Stored) -> None:
        """Keep a response, or what has become of it. One that is larger than the whole store is not kept."""
        key, size = stored.body["id"], stored.num_bytes
        self._drop(key)
        self._stored[key] = stored, size
        self._bytes += size
        while len(self._stored) > self._max_responses or self._bytes > self._max_bytes:
            self._drop(next(iter(self._stored)))

    def get(self, key: str) -> Stored:
        """Raises ApiError 404."""
        if key not in self._stored:
            message = (
                f"no response {key[:80]!r} is stored: not kept (store: false), deleted, or pushed out by newer ones"
            )
            raise ApiError(404, message, "response_not_found")
        self._stored.move_to_end(key)
        return self._stored[key][0]

    def delete(self, key: str) -> None:
        """Raises ApiError 404."""
        self.get(key)
        self._drop(key)

    def _drop(self, key: str) -> None:
        if key in self._stored:
            self._bytes -= self._stored.pop(key)[1]
