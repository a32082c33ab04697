"""Embeddings of texts: hidden states of the decoder, computed by the same scheduler as everything else."""

import asyncio
import queue
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vllm_nb.engine.loop import EngineLoop
from vllm_nb.engine.scheduler import TokenOutput
from vllm_nb.engine.sequence import Pooling, Sequence
from vllm_nb.errors import GenerationError, RequestError
from vllm_nb.outputs import Choice, GenerationOutput, Timings, Usage
from vllm_nb.sampling import NEUTRAL_DEFAULTS, SamplingParams
from vllm_nb.streams import AsyncChannel, Outputs, check_alive

POOLINGS: tuple[Pooling, ...] = ("mean", "last")
_PARAMS = SamplingParams(**{**NEUTRAL_DEFAULTS, "temperature": 0.0}, max_tokens=1)  # nothing is drawn


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """vectors: float32 [num_inputs, dimensions], of length 1, in the order of the inputs."""

    vectors: np.ndarray
    usage: Usage


class EmbeddingRequest:
    """Many prompts, one vector each: a sequence a prompt, at most `window` of them in the engine at a time.

    pooling: "mean" over the hidden states of all tokens, or the "last" token's. dimensions: the first so many of a
    vector, made of length 1 again; None: all. max_len: tokens the engine takes. too_long: what to
    do about more, in words. size: dimensions the model has.
    Raises RequestError saying which input is at fault.
    """

    def __init__(
        self,
        loop: EngineLoop,
        prompts: list[list[int]],
        *,
        pooling: Pooling,
        dimensions: int | None,
        window: int,
        max_len: int,
        too_long: str,
        size: int,
    ):
        _check(prompts, pooling, dimensions, size)
        _check_lengths(prompts, max_len, too_long)
        self.request_id = f"embd-{uuid.uuid4().hex[:16]}"
        self._loop = loop
        self._window = window
        self._sequences = [self._sequence(i, prompt, pooling) for i, prompt in enumerate(prompts)]
        self._vectors = np.zeros((len(prompts), size if dimensions is None else dimensions), np.float32)
        self._cancelled = False
        self._finished: float | None = None

    def run(self) -> EmbeddingOutput:
        """Compute them all. Raises GenerationError, QueueFullError, EngineDeadError."""
        channel: queue.SimpleQueue[Outputs] = queue.SimpleQueue()
        try:
            for window in self._windows():
                self._loop.submit(window, channel)
                missing = len(window)
                while missing:
                    missing -= self._receive(check_alive(channel.get(), self._loop))
        except BaseException:
            self.cancel()
            raise
        return self._complete()

    async def arun(self) -> EmbeddingOutput:
        """As `run`, for asyncio; cancelling it ends the request in the engine."""
        channel = AsyncChannel(asyncio.get_running_loop())
        arriving = channel.open(self.request_id)
        try:
            for window in self._windows():
                self._loop.submit(window, channel)
                missing = len(window)
                while missing:
                    missing -= self._receive(check_alive(await arriving.get(), self._loop))
        except BaseException:
            self.cancel()
            raise
        return self._complete()

    def cancel(self) -> None:
        """End what still runs. Safe at any time."""
        self._cancelled = True
        self._loop.abort(self.request_id)

    abort = cancel  # there is no half of it that would still be told

    def _sequence(self, index: int, prompt: list[int], pooling: Pooling) -> Sequence:
        return Sequence.new(
            np.array(prompt, np.int32),
            request_id=self.request_id,
            index=index,
            params=_PARAMS,
            seed=0,
            max_tokens=1,
            stop_ids=frozenset(),
            arrived=time.monotonic(),
            pooling=pooling,
        )

    def _windows(self) -> Iterator[list[Sequence]]:
        for start in range(0, len(self._sequences), self._window):
            if self._cancelled:
                raise GenerationError("the request was aborted")
            yield self._sequences[start : start + self._window]

    def _receive(self, outputs: list[TokenOutput]) -> int:
        """Take the vectors of a step; how many there were."""
        for output in outputs:
            if output.embedding is None:
                raise GenerationError(output.error or "the request was aborted")
            vector = output.embedding[: self._vectors.shape[1]]
            length = np.linalg.norm(vector)
            if not np.isfinite(length):
                raise GenerationError(f"the model gave NaN hidden states for input {output.seq.index}")
            self._vectors[output.seq.index] = vector / max(length, np.finfo(np.float64).tiny)
        return len(outputs)

    @property
    def output(self) -> GenerationOutput:
        """The request so far as those see it who count requests: an answer without tokens."""
        scheduled = min((seq.scheduled for seq in self._sequences if seq.scheduled is not None), default=None)
        timings = Timings(self._sequences[0].arrived, scheduled, finished=self._finished)
        reason = "abort" if self._finished is None else "stop"
        return GenerationOutput(self.request_id, [Choice(finish_reason=reason)], self._usage, timings)

    @property
    def _usage(self) -> Usage:
        cached = sum(seq.num_cached for seq in self._sequences)
        return Usage(prompt_tokens=sum(seq.prompt_len for seq in self._sequences), cached_tokens=cached)

    def _complete(self) -> EmbeddingOutput:
        self._finished = time.monotonic()
        return EmbeddingOutput(self._vectors, self._usage)


def _check(prompts: list[list[int]], pooling: str, dimensions: int | None, size: int) -> None:
    if pooling not in POOLINGS:
        raise RequestError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
    if dimensions is not None and not 1 <= dimensions <= size:
        raise RequestError(f"dimensions must be a whole number from 1 to {size}, the model's own, not {dimensions!r}")
    if not prompts:
        raise RequestError("input must hold at least one text")


def _check_lengths(prompts: list[list[int]], max_len: int, too_long: str) -> None:
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise RequestError(f"input[{i}] must have at least one token")
        if len(prompt) > max_len:
            raise RequestError(f"input[{i}] must have at most {max_len:,} tokens, not {len(prompt):,}: {too_long}")
