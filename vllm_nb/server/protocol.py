"""HTTP on the wire, with limits: how large a head may be, how long a request may take to arrive, how long a reader may
not read. (uvicorn itself waits for ever.)"""

import asyncio
import json
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vllm_nb.server.errors import ApiError, openai_shape
from vllm_nb.server.security import MAX_HEADERS

MAX_HEAD = MAX_HEADERS + 16 * 2**10  # bytes: a request's line too
ARRIVAL = 120.0  # seconds for a whole request, from its first byte
STALLED = 120.0  # seconds for a reader to make room, before it counts as gone


class LimitedProtocol(H11Protocol):
    """One connection. A request that does not arrive in time is answered 408, one that is no HTTP 400, a head that is
    too large 431; then the connection ends. A reader that takes nothing for long is hung up on, which ends its
    request."""

    arrival, stalled = ARRIVAL, STALLED
    _arriving: asyncio.TimerHandle | None = None
    _stalling: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._arriving = self.loop.call_later(self.arrival, self._give_up)

    def data_received(self, data: bytes) -> None:
        if self._arriving is None:
            self._arriving = self.loop.call_later(self.arrival, self._give_up)
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._arrived()

    def on_response_complete(self) -> None:
        self._arrived()  # answered before it was read to its end
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalling = self.loop.call_later(self.stalled, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalling is not None:
            self._stalling.cancel()
            self._stalling = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's call for what is not HTTP."""
        too_large = len(self.conn.trailing_data[0]) > MAX_HEAD
        if too_large:
            self._refuse(431, f"the request's head is larger than {MAX_HEAD // 2**10} KiB", "head_too_large")
        else:
            self._refuse(400, "this is not an HTTP/1.1 request", "invalid_http")

    def _arrived(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _give_up(self) -> None:
        self._arriving = None
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self.transport.close()  # a connection that was never used
        else:
            self._refuse(408, f"the request did not arrive within {self.arrival:g} seconds", "request_timeout")

    def _refuse(self, status: int, message: str, code: str) -> None:
        """An answer without the application, where none has begun; the connection ends."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(openai_shape(ApiError(status, message, code))).encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            head = h11.Response(status_code=status, reason=HTTPStatus(status).phrase.encode(), headers=headers)
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
