"""A batch where a server has no room: what is refused is asked again, as long as the batch gets anywhere."""

import asyncio
import random
from time import monotonic

from vllm_nb.client.aio import AsyncEngineClient
from vllm_nb.client.base import Query
from vllm_nb.client.completion import Completion
from vllm_nb.errors import QueueFullError

LIMIT = 600.0  # seconds of refusals without any answer, after which what is refused fails
FIRST, LONGEST = 1.0, 60.0  # seconds until a refused request is asked again: twice as long each time
ACCEPTED = 90.0  # seconds; what is out for longer is being answered, for no refusal takes so long


class Patience:
    """Asks the requests of one batch again while its server refuses them because it is full, loads or limits rates."""

    def __init__(self) -> None:
        self._refused: float | None = None  # when the first was since anything of the batch was answered
        self._out: dict[object, float] = {}  # when each request was sent that has no reply yet

    async def answer(self, client: AsyncEngineClient, query: Query) -> Completion:
        """As `client.answer`. Raises QueueFullError when the batch was refused for LIMIT seconds and nothing of it
        answered, or would be: at once where the server wants a longer wait than is left."""
        pause = FIRST
        while True:
            try:
                return await self._ask(client, query)
            except QueueFullError as error:
                wait = error.retry_after
                if not await client.ours():  # an engine of ours has room soon; of others nobody knows
                    wait = max(wait, pause * random.uniform(0.5, 1.0))  # who was refused together comes back apart
                self._check(error, wait)
            await asyncio.sleep(wait)
            pause = min(2 * pause, LONGEST)

    async def _ask(self, client: AsyncEngineClient, query: Query) -> Completion:
        request = object()
        self._out[request] = monotonic()
        try:
            completion = await client.answer(query)
        finally:
            del self._out[request]
        self._refused = None
        return completion

    def _check(self, error: QueueFullError, wait: float) -> None:
        """Raises QueueFullError where there is no sense in waiting."""
        now = monotonic()
        self._refused = now if self._refused is None else self._refused
        answering = any(now - sent > ACCEPTED for sent in self._out.values())
        idle = 0.0 if answering else now - self._refused
        if idle + wait > LIMIT:
            raise QueueFullError(
                f"{error} (given up: nothing of this batch was answered for {idle:.0f} s, and the next try would be in "
                f"{wait:.0f} s; run what failed again later, or with a lower concurrency)",
                error.retry_after,
            )
