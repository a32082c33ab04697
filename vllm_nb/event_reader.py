"""Reads an engine's event log in batches, with a snapshot where the reader cannot know the state."""

import time
from collections.abc import Generator

from vllm_nb.engine.loop import EngineLoop
from vllm_nb.events import HEARTBEAT, POLL, Batch, Event, RequestQueued, TokenLogprobs, TokensSampled
from vllm_nb.text.tokenizer import Tokenizer

MOST = 4096  # events in a batch


class EventReader:
    """One reader. offset: number of the first event it wants; None: it knows nothing yet.

    The log belongs to the engine thread; looking and encoding is done here, on the reader's own.
    """

    def __init__(self, loop: EngineLoop, tokenizer: Tokenizer, offset: int | None = None):
        self._loop = loop
        self._tokenizer = tokenizer
        self._offset = offset
        self._told: set[int] = set()  # token ids whose text the reader has

    @property
    def has_news(self) -> bool:
        """Whether `read` will give anything. Costs next to nothing. Raises EngineDeadError."""
        ring = self._loop.ring
        if ring is not None:
            ring.read_at = time.monotonic()
        return ring is None or self._offset != ring.end

    def read(self) -> Batch:
        """What has happened since; possibly nothing. Waits for the step in progress where a snapshot is needed."""
        ring = self._loop.ring
        events = None if ring is None or self._offset is None else ring.read(self._offset, MOST)
        if events is None:
            return self._begin()
        assert self._offset is not None
        batch = Batch(self._offset, events, texts=self._texts(_token_ids(events)))
        self._offset += len(events)
        return batch

    def _begin(self) -> Batch:
        snapshot = self._loop.snapshot()
        lost = 0 if self._offset is None else max(0, snapshot.offset - self._offset)
        self._offset = snapshot.offset
        state = snapshot.to_dict()
        ids = {i for seq in state["sequences"] for i in seq["tokens"]}
        ids.update(i for _, _, _, token_ids in state["stored"] for i in token_ids)
        return Batch(snapshot.offset, [], lost, state, self._texts(ids))

    def _texts(self, ids: set[int]) -> dict[int, str]:
        new = ids - self._told
        self._told |= new
        return {i: self._tokenizer.token_text(i) for i in new}

    def batches(self, *, follow: bool) -> Generator[Batch, None, None]:
        """Batches as they come, an empty one when nothing has happened for a while; without `follow`, what there is.
        Raises EngineDeadError."""
        while follow or self.has_news:
            deadline = time.monotonic() + HEARTBEAT
            while not self.has_news and time.monotonic() < deadline:
                time.sleep(POLL)
            yield self.read()
            if follow:
                time.sleep(POLL)


def _token_ids(events: list[Event]) -> set[int]:
    ids: set[int] = set()
    for event in events:
        match event:
            case RequestQueued():
                ids.update(event.prompt)
            case TokensSampled():
                ids.update(event.token_ids)
            case TokenLogprobs():
                ids.update(event.top_ids)
    return ids
