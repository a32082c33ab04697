"""Many requests at once: a window of them in flight, results as they come or in order."""

import asyncio
import collections
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from vllm_nb.client.aio import AsyncEngineClient
from vllm_nb.client.base import Query
from vllm_nb.client.completion import Completion
from vllm_nb.client.interrupts import heed
from vllm_nb.client.patience import Patience
from vllm_nb.errors import EngineDeadError, VllmNbError

if TYPE_CHECKING:
    from vllm_nb.client.http import EngineClient

T = TypeVar("T")


async def as_completed(
    client: AsyncEngineClient, queries: Iterable[Query | VllmNbError], concurrency: int
) -> AsyncGenerator[tuple[int, Completion], None]:
    """(place, answer) of each query, in the order they are done. `queries` is read only as far as there is room, so a
    generator of any length takes constant memory. A request that fails alone gives a Completion with `error`.

    Raises EngineDeadError. Leaving it early cancels what is in flight.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")
    numbered, patience = enumerate(queries), Patience()
    running: set[asyncio.Task[tuple[int, Completion]]] = set()
    done: set[asyncio.Task[tuple[int, Completion]]] = set()
    try:
        while True:
            while len(running) < concurrency and (entry := next(numbered, None)) is not None:
                running.add(asyncio.ensure_future(_ask(client, patience, *entry)))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(
                done, key=lambda task: task.exception() is not None
            ):  # answers are not lost with an error
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, *done, return_exceptions=True)


async def _ask(
    client: AsyncEngineClient, patience: Patience, place: int, query: Query | VllmNbError
) -> tuple[int, Completion]:
    if isinstance(query, VllmNbError):
        return place, Completion.failed(str(query))
    try:
        return place, await patience.answer(client, query)
    except EngineDeadError:
        raise
    except VllmNbError as error:
        return place, Completion.failed(str(error)).of(query, client.sync)


async def in_turn(
    client: AsyncEngineClient, queries: Iterable[Query | VllmNbError], concurrency: int
) -> AsyncGenerator[Completion, None]:
    """The answers in the order of the queries, `concurrency` of them asked at a time. A slow one holds back what comes
    after it, of which a few times as many are kept."""
    room, patience = asyncio.Semaphore(concurrency), Patience()
    waiting: collections.deque[asyncio.Task[Completion]] = collections.deque()

    async def answer(query: Query | VllmNbError) -> Completion:
        async with room:
            return (await _ask(client, patience, 0, query))[1]

    rest = iter(queries)
    try:
        while True:
            while len(waiting) < 4 * concurrency and (query := next(rest, None)) is not None:
                waiting.append(asyncio.ensure_future(answer(query)))
            if not waiting:
                return
            yield await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def in_order(
    client: AsyncEngineClient, conversations: Iterable[Any], concurrency: int, params: Mapping[str, Any]
) -> list[Completion]:
    """All answers, each in its conversation's place."""
    answers = as_completed(client, _queries(conversations, params), concurrency)
    found = {place: completion async for place, completion in answers}
    return [found[place] for place in range(len(found))]


def _queries(conversations: Iterable[Any], params: Mapping[str, Any]) -> Iterator[Query | VllmNbError]:
    for conversation in conversations:
        try:
            yield Query.chat(conversation, params)
        except VllmNbError as error:  # of this conversation alone; wrong params raise other errors
            yield error


def run_batch(
    client: "EngineClient", conversations: Iterable[Any], concurrency: int, params: Mapping[str, Any]
) -> list[Completion]:
    """As `in_order`, without asyncio."""

    async def answers() -> list[Completion]:
        async with AsyncEngineClient.like(client) as aio:
            return await in_order(aio, conversations, concurrency, params)

    return run_aside(answers)


def run_aside(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on a thread and event loop of its own: a notebook's thread has a loop that runs already.

    An interrupt cancels it and is passed on when it has ended.
    """
    results: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    ready: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = queue.SimpleQueue()

    async def work() -> T:
        task = asyncio.ensure_future(start())
        ready.put((asyncio.get_running_loop(), task))
        return await task

    def run() -> None:
        try:
            results.put((asyncio.run(work()), None))
        except BaseException as error:
            results.put((None, error))

    thread = threading.Thread(target=run, name="vllm-nb-async", daemon=True)
    thread.start()
    heed()
    try:
        value, error = results.get()
    except KeyboardInterrupt:
        loop, task = ready.get()
        with suppress(RuntimeError):  # it has ended meanwhile
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # there is one where there is no error


def iterate_aside(
    client: "EngineClient", start: Callable[[AsyncEngineClient], AsyncGenerator[T, None]], ahead: int
) -> Generator[T, None, None]:
    """The items of an asynchronous generator that runs on a thread and event loop of its own, at most `ahead` of them
    ahead. It is started with a client like `client`.

    It ends there too when this ends, by an interrupt, an error or being closed.
    """
    items: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    ready: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any], asyncio.Semaphore]] = (
        queue.SimpleQueue()
    )

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        room = asyncio.Semaphore(ahead)
        ready.put((asyncio.get_running_loop(), task, room))
        async with AsyncEngineClient.like(client) as aio, aclosing(start(aio)) as source:
            async for item in source:
                await room.acquire()
                items.put((item, None))

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            items.put((None, error))
        else:
            items.put((None, StopIteration()))

    thread = threading.Thread(target=run, name="vllm-nb-async", daemon=True)
    thread.start()
    heed()
    loop, task, room = ready.get()
    try:
        while True:
            item, end = items.get()
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
            yield item  # type: ignore[misc]  # there is one where there is no error
            with suppress(RuntimeError):  # the loop has ended: nobody waits for room
                loop.call_soon_threadsafe(room.release)
    finally:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
