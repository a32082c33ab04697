"""Load on a server: requests of random lengths that arrive at random moments, and what became of each."""

import asyncio
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vllm_nb.bench.sse import Answer, Client
from vllm_nb.errors import VllmNbError

WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
]  # a token each for most models
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass(frozen=True, slots=True)
class Workload:
    """Which requests. input, output: least and most tokens, all lengths alike likely. endpoint: a key of PATHS."""

    model: str
    input: tuple[int, int]
    output: tuple[int, int]
    seed: int = 0
    endpoint: str = "completions"

    def requests(self) -> Iterator[tuple[bytes, int]]:
        """(body, tokens asked for), without end. No two prompts begin alike, so that no cache helps."""
        rng = np.random.default_rng(self.seed)
        for number in range(10**9):
            words = int(rng.integers(self.input[0], self.input[1] + 1))
            tokens = int(rng.integers(self.output[0], self.output[1] + 1))
            text = " ".join([f"{number}:", *rng.choice(WORDS, max(1, words - 3))])
            yield json.dumps(self._body(text, tokens)).encode(), tokens

    def _body(self, text: str, tokens: int) -> dict[str, Any]:
        prompt = {"messages": [{"role": "user", "content": text}]} if self.endpoint == "chat" else {"prompt": text}
        fixed = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        ours = {"ignore_eos": True, "return_token_ids": True}  # others ignore these
        return {"model": self.model, "max_tokens": tokens} | prompt | fixed | ours


@dataclass(slots=True)
class Outcome:
    """What became of a request; moments in seconds on the monotonic clock. times: when each event with text came.

    received: tokens in the events, where the server says; completion: those it counted.
    """

    sent: float
    finished: float = 0.0
    times: list[float] = field(default_factory=list)
    prompt: int = 0
    completion: int = 0
    received: int | None = None
    error: str | None = None

    @property
    def ttft(self) -> float:
        return self.times[0] - self.sent

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first; None for a single one."""
        return (self.times[-1] - self.times[0]) / (self.completion - 1) if self.completion > 1 else None

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in itertools.pairwise(self.times)]

    @property
    def lost(self) -> int:
        return 0 if self.received is None else self.completion - self.received


async def run_load(
    client: Client,
    workload: Workload,
    *,
    rate: float = math.inf,
    concurrency: int = 64,
    requests: int | None = None,
    duration: float | None = None,
    on_done: Callable[[Outcome], None] = lambda _: None,
) -> tuple[list[Outcome], float]:
    """Outcomes, and the seconds all of it took. rate: requests a second, arriving as a Poisson process; inf: at once.
    concurrency: most that run at a time; the others wait here. Ends after `requests` or `duration` seconds."""
    outcomes: list[Outcome] = []
    slots = asyncio.Semaphore(concurrency)
    rng = np.random.default_rng(workload.seed + 1)
    began = arrival = time.monotonic()

    async def one(body: bytes) -> None:
        try:
            outcome = await ask(client, PATHS[workload.endpoint], body)
        finally:
            slots.release()
        outcomes.append(outcome)
        on_done(outcome)

    async with asyncio.TaskGroup() as running:
        for number, (body, _) in enumerate(workload.requests()):
            if number == requests:
                break
            if rate != math.inf:
                arrival += rng.exponential(1 / rate)
                await asyncio.sleep(arrival - time.monotonic())
            await slots.acquire()
            if duration is not None and time.monotonic() - began >= duration:
                break
            running.create_task(one(body))
    return outcomes, time.monotonic() - began


async def ask(client: Client, path: str, body: bytes) -> Outcome:
    """One streamed request; a failure is in the outcome."""
    outcome = Outcome(sent=time.monotonic())
    try:
        answer = await client.request("POST", path, body)
        _read(answer, outcome)
    except VllmNbError as error:
        outcome.error = str(error)
        outcome.finished = time.monotonic()
    return outcome


def _read(answer: Answer, outcome: Outcome) -> None:
    outcome.finished = answer.finished
    if answer.status != 200:
        outcome.error = f"HTTP {answer.status}: {answer.body[:200].decode(errors='replace')}"
        return
    complete = False
    for moment, data in _events(answer.pieces):
        if data == b"[DONE]":
            complete = True
        else:
            _take(json.loads(data), moment, outcome)
    if outcome.error is None and not (complete and outcome.times):
        outcome.error = "the answer broke off"
    outcome.completion = outcome.completion or outcome.received or len(outcome.times)


def _events(pieces: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """(when it was complete, data) of each server-sent event."""
    rest = b""
    for moment, piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield moment, line[5:].strip()


def _take(event: dict[str, Any], moment: float, outcome: Outcome) -> None:
    if "error" in event:
        outcome.error = str(event["error"])
        return
    if event.get("usage"):
        outcome.prompt = event["usage"].get("prompt_tokens", 0)
        outcome.completion = event["usage"].get("completion_tokens", 0)
    for choice in event.get("choices", ()):
        ids = choice.get("token_ids")
        delta = choice.get("delta") or choice
        if ids is not None:
            outcome.received = (outcome.received or 0) + len(ids)
        if ids or delta.get("text") or delta.get("content") or delta.get("reasoning_content"):
            outcome.times.append(moment)
