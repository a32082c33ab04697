"""An HTTP client for each event loop: connections belong to the loop they were made in, in another they only fail."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx


class LoopConnections:
    """Usable from several loops, one after another or, on threads, at once. What nobody closes ends with its loop."""

    def __init__(self, arguments: Callable[[], Mapping[str, Any]]):
        """arguments: of httpx.AsyncClient, asked for when one is made."""
        self._arguments = arguments
        self._open: dict[asyncio.AbstractEventLoop, tuple[httpx.AsyncClient, AsyncGenerator[httpx.AsyncClient]]] = {}

    async def here(self) -> "httpx.AsyncClient":
        """The client of the loop that runs."""
        loop = asyncio.get_running_loop()
        http, _ = self._open.get(loop, (None, None))
        if http is None or http.is_closed:
            for ended in [known for known in list(self._open) if known.is_closed()]:
                self._open.pop(ended, None)
            source = _until_the_loop_ends(self._arguments())
            http = await anext(source)  # does not wait, so that no other task comes between
            self._open[loop] = http, source
        return http

    async def close(self) -> None:
        """Give up the connections of the loop that runs; other loops keep theirs."""
        _, source = self._open.pop(asyncio.get_running_loop(), (None, None))
        if source is not None:
            await source.aclose()


async def _until_the_loop_ends(arguments: Mapping[str, Any]) -> "AsyncGenerator[httpx.AsyncClient]":
    """A client that is closed with this generator. asyncio.run closes generators while its loop still runs, as it must
    for the sockets to be closed; nothing else is told before a loop ends."""
    import httpx

    async with httpx.AsyncClient(**arguments) as http:
        yield http
