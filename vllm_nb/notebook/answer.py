"""One request from a cell: read on a thread of its own, shown by the cell's thread, stopped by an interrupt.

The cell's thread never waits on the network: it can say what goes on while nothing comes (queued, prefill), and an
interrupt reaches it at once.
"""

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress

from vllm_nb.client.completion import Completion
from vllm_nb.client.http import EngineClient
from vllm_nb.client.stream import ChatStream
from vllm_nb.errors import EngineDeadError, VllmNbError
from vllm_nb.notebook.display import UPDATE_INTERVAL, Frame, View
from vllm_nb.outputs import StreamItem

ABORT_SECONDS = 2.0  # how long an interrupted cell waits for the last words of its request
_LOOK_INTERVAL = 0.5  # seconds between two looks at the engine's queue while nothing comes


class Answer:
    """A stream being shown. `completion` is what has come of it.

    choices: how many answers will come. show_text: show them while they grow, or only what goes on.
    """

    def __init__(
        self, client: EngineClient, stream: ChatStream, view: View, *, choices: int = 1, show_text: bool = True
    ):
        self._client = client
        self._stream = stream
        self._view = view
        self._choices = choices if show_text else 0
        self._queue: queue.SimpleQueue[StreamItem | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._started = self._looked = time.monotonic()
        self._first_token: float | None = None
        self._tokens = 0
        self._phase = "queued"
        self.completion: Completion = stream.completion

    def show(self) -> None:
        """Run the request to its end. Raises what the client raises, EngineDeadError also where the engine was stopped
        meanwhile; after a KeyboardInterrupt the request has ended in the engine."""
        self._show()
        reader = threading.Thread(target=self._read, name="vllm-nb-answer", daemon=True)
        reader.start()
        try:
            for item in self._items():
                if item is not None:
                    self._count(item)
                elif self._first_token is None:
                    self._look()
                self._show()
            if any(choice.finish_reason == "abort" for choice in self.completion.choices):
                self._check_engine()
        except KeyboardInterrupt:
            self._stop(reader)
            raise

    def _read(self) -> None:
        """On the reader's thread, which touches neither the display nor the notebook."""
        try:
            with self._stream as stream:
                if not self._stopped.is_set():  # else it was stopped before it had an id to be stopped by
                    for item in stream:
                        self._queue.put(item)
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)

    def _items(self) -> Iterator[StreamItem | None]:
        """What the reader gets; None where nothing came for a moment."""
        while True:
            try:
                item = self._queue.get(timeout=UPDATE_INTERVAL)
            except queue.Empty:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _stop(self, reader: threading.Thread) -> None:
        """Abort by id, so that the engine sends what it has and the connection ends in order; else hang up."""
        self._stopped.set()
        if self._stream.request_id:
            self._client.abort(self._stream.request_id)
        reader.join(ABORT_SECONDS)
        if reader.is_alive():  # what it may still add is not what the cell shows
            self.completion = self._stream.snapshot()
            self._stream.abort()
        self.completion.mark_aborted()

    def _check_engine(self) -> None:
        """The answer was ended from elsewhere: on purpose, where the engine lives on, as its second batch of events
        tells; one that is about to end sends no second. Raises VllmNbError where it was not on purpose."""
        client = self._client
        if not client.ours:  # nobody can abort by id there
            raise VllmNbError(
                f"{client.name!r} at {client.url} ended the request before the answer was complete: run the cell again"
            )
        try:
            with closing(client.events()) as batches:
                next(batches)
                next(batches)
        except EngineDeadError:
            raise client.gone(InterruptedError("it was stopped in mid-answer")) from None

    # What is shown

    def _count(self, item: StreamItem) -> None:
        self._tokens += len(item.token_ids) or bool(item.text or item.reasoning)  # other servers send no ids
        if self._first_token is None and self._tokens:
            self._first_token = time.monotonic()

    def _look(self) -> None:
        """Nothing comes: find out why."""
        if time.monotonic() - self._looked < _LOOK_INTERVAL:
            return
        with suppress(VllmNbError):  # another server than ours may not tell
            state = self._client.state()
            waiting = state.get("waiting")
            self._phase = f"queued, {waiting} waiting" if waiting else "prefill"
            if state.get("paused"):
                self._phase = "the engine is paused: %vllm resume in another notebook, or interrupt this cell"
        self._looked = time.monotonic()

    def _show(self) -> None:
        texts = [choice.text for choice in self.completion.choices] + [""] * self._choices
        self._view.update(Frame(self._status(), texts[: self._choices]))

    def _status(self) -> str:
        now = time.monotonic()
        if self._first_token is None:
            return f"{self._phase}: {now - self._started:.1f} s"
        count = f"{self._tokens:,} token" if self._tokens == 1 else f"{self._tokens:,} tokens"
        seconds = now - self._first_token
        return f"{count} · {(self._tokens - 1) / seconds:.1f} tok/s" if self._tokens > 1 and seconds else count
