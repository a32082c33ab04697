"""When a server ends by itself: idle for long enough, its engine has failed, or its owner has ended."""

import asyncio
import logging
import time
from collections.abc import Callable

from vllm_nb.connection import is_running
from vllm_nb.server.host import EngineHost

logger = logging.getLogger(__name__)

TICK = 0.25  # seconds
DRAIN = 30.0  # seconds for running answers after the first Ctrl+C or SIGTERM
FAILURE_LINGER = 3.0  # seconds in which /health tells of a failure, unless it has been told before


async def watch(
    host: EngineHost, stop: Callable[[], None], stopping: Callable[[], bool], on_tick: Callable[[], None]
) -> None:
    """Call `stop` when the server should end, and see to it that it does. `on_tick` is called four times a second."""
    while not stopping():
        await asyncio.sleep(TICK)
        if host.status == "failed":
            await _linger(host)
            stop()
        elif host.idle_timeout is not None and host.status == "ready" and host.idle_seconds >= host.idle_timeout:
            logger.info("no request for %g seconds: stopping", host.idle_timeout)
            stop()
        elif host.owner is not None and not is_running(*host.owner):
            logger.info("the process %d, with which this one was to end, has ended: stopping", host.owner[0])
            stop()
        else:
            on_tick()
    await asyncio.sleep(DRAIN)
    host.abort_all()  # completes each answer in order, which the end of the connection would not


async def _linger(host: EngineHost) -> None:
    deadline = time.monotonic() + FAILURE_LINGER
    while not host.failure_told and time.monotonic() < deadline:
        await asyncio.sleep(TICK / 10)
