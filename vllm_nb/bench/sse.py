"""An HTTP client that costs little: it notes when each piece of an answer came, and reads what it says afterwards.

A client on the same machine takes its time from the engine it measures, so this one has one callback a piece and no
layers between.
"""

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h11

from vllm_nb.errors import VllmNbError


@dataclass(slots=True)
class Answer:
    """status: of HTTP. pieces: (seconds by the monotonic clock, bytes of the body)."""

    status: int = 0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    finished: float = 0.0

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.pieces)


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self.usable = True
        self._transport: asyncio.Transport | None = None
        self._http = h11.Connection(h11.CLIENT)
        self._answer = Answer()
        self._done: asyncio.Future[Answer] | None = None

    async def exchange(self, request: h11.Request, body: bytes) -> Answer:
        """Send, and wait for the whole answer. Raises ConnectionError, h11.ProtocolError."""
        assert self._transport is not None
        self._answer, self._done = Answer(), asyncio.get_running_loop().create_future()
        events = (request, h11.Data(data=body), h11.EndOfMessage())
        self._transport.write(b"".join(self._http.send(event) or b"" for event in events))
        return await self._done

    def close(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.close()

    # asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        try:
            self._http.receive_data(data)
            while (event := self._http.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                self._take(event, now)
        except h11.ProtocolError as error:
            self._fail(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(ConnectionError(str(error) if error else "the server closed the connection"))

    def _take(self, event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED], now: float) -> None:
        if isinstance(event, h11.Data):
            self._answer.pieces.append((now, bytes(event.data)))
        elif isinstance(event, h11.Response):
            self._answer.status = event.status_code
        elif isinstance(event, h11.EndOfMessage):
            self._answer.finished = now
            self._renew()
            if self._done is not None and not self._done.done():
                self._done.set_result(self._answer)

    def _renew(self) -> None:
        """Ready for the next exchange, where the server keeps the connection."""
        try:
            self._http.start_next_cycle()
        except h11.ProtocolError:
            self.usable = False

    def _fail(self, error: Exception) -> None:
        self.usable = False
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


class Client:
    """Requests to one server over connections that are kept. url: with or without the /v1 at its end.

    Raises VllmNbError for a URL that is none.
    """

    def __init__(self, url: str, api_key: str | None = None, *, timeout: float = 600.0):
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise VllmNbError(f"the server's address must be like http://127.0.0.1:8000, not {url!r}")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        self._host, self._port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = [("Host", parts.netloc), ("Content-Type", "application/json")]
        self._headers += [("Authorization", f"Bearer {api_key}")] if api_key else []
        self._timeout = timeout
        self._idle: list[Connection] = []

    async def request(self, method: str, path: str, body: bytes = b"") -> Answer:
        """One exchange. Raises VllmNbError when nobody answers, or too late."""
        headers = [*self._headers, ("Content-Length", str(len(body)))]
        message = h11.Request(method=method, target=self._prefix + path, headers=headers)
        try:
            async with asyncio.timeout(self._timeout):
                kept = self._kept()
                if kept is not None:
                    try:
                        return await self._on(kept, message, body)
                    except ConnectionError:  # closed while it was idle: that is no failure
                        pass
                return await self._on(await self._connect(), message, body)
        except TimeoutError:
            raise VllmNbError(f"no answer from {self.url} within {self._timeout:g} s") from None
        except (OSError, h11.ProtocolError) as error:
            raise VllmNbError(f"no answer from {self.url}: {error or type(error).__name__}") from None

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._ssl)
        return connection

    async def _on(self, connection: Connection, message: h11.Request, body: bytes) -> Answer:
        try:
            answer = await connection.exchange(message, body)
        except BaseException:
            connection.close()
            raise
        if connection.usable:
            self._idle.append(connection)
        else:
            connection.close()
        return answer
