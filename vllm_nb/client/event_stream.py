"""The engine's event log over HTTP: server-sent events in, batches out."""

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

from vllm_nb.client.answers import EventSplitter, error_status
from vllm_nb.events import Batch, from_wire

if TYPE_CHECKING:
    from vllm_nb.client.http import EngineClient

_PATIENCE = 60.0  # seconds without a sign of life; a snapshot waits for the step in progress


def read_events(client: "EngineClient", offset: int | None, follow: bool) -> Generator[Batch, None, None]:
    """Batches from event number `offset` on. Raises EngineDeadError when the engine ends, EventFormatError."""
    import httpx

    query = f"follow={str(follow).lower()}" + ("" if offset is None else f"&offset={offset}")
    response = client.send("GET", f"/inspect/events?{query}", timeout=_PATIENCE, stream=True)
    with closing(response):
        if response.status_code != 200:
            client._payload("/inspect/events", response.status_code, response.headers, response.read())
        splitter = EventSplitter()
        try:
            for piece in response.iter_bytes():
                for body in splitter.feed(piece):
                    if "error" in body:
                        raise client.error(error_status(body["error"]), body["error"])
                    yield from_wire(body)
        except httpx.TransportError as error:
            raise client.failure(error) from None
    if follow:
        raise client.gone(EOFError("the events broke off"))
