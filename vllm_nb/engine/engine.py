"""The engine: one step loop over scheduler, runner and sampler. One thread owns all of it (engine/loop.py)."""

import logging
import time
from dataclasses import dataclass

import numpy as np

from vllm_nb.engine.events import EventLog
from vllm_nb.engine.pooler import pool
from vllm_nb.engine.runner import Runner
from vllm_nb.engine.sampler import Drawn, Sampler, Samples
from vllm_nb.engine.scheduler import Logprobs, Plan, Scheduler, TokenOutput
from vllm_nb.engine.sequence import Sequence, Status
from vllm_nb.engine.stats import EngineStats
from vllm_nb.events import StepDone, TokenLogprobs
from vllm_nb.inspection.info import EngineInfo
from vllm_nb.outputs import LOWEST_LOGPROB

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launched:
    """A step that is under way. times: seconds that the host took for scheduling, preparing, the forward pass and
    sampling, without waiting for the device."""

    plan: Plan
    drawn: Drawn
    embeddings: dict[Sequence, np.ndarray]
    times: tuple[float, float, float, float]


class EngineCore:
    """What a step needs, and the step. Not thread-safe.

    overlap: the next step is launched before the tokens of the last one are waited for and booked, so that the device
    has something to do meanwhile. What ends by a stop token is then found a step late: its row of the next step is
    computed for nothing, and thrown away.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        sampler: Sampler,
        events: EventLog,
        info: EngineInfo,
        *,
        overlap: bool = False,
    ):
        self.scheduler = scheduler
        self.runner = runner
        self.sampler = sampler
        self.events = events
        self.info = info
        self.stats = EngineStats()
        self.last_step: StepDone | None = None  # as far as anybody watched
        self._overlap = overlap
        self._launched: Launched | None = None

    @property
    def has_work(self) -> bool:
        return self._launched is not None or self.scheduler.has_work

    def step(self) -> list[TokenOutput]:
        """Launch the next step, and book the one that is under way, or without overlap this one. Returns what ended or
        went on in what was booked."""
        clock = time.monotonic
        outputs = self.settle() if self._launched and not self.scheduler.can_run_ahead() else []
        started = clock()
        plan = self.scheduler.schedule()
        scheduled = clock()
        if not plan.seqs:
            return outputs + self.settle()
        try:
            batch, logits_row = self.runner.prepare(plan)
            prepared = clock()
            logits, hidden = self.runner.forward(batch)
            forwarded = clock()
            drawn = self.sampler(logits, plan, logits_row)
            embeddings = pool(hidden, plan) if plan.pooled else {}
            times = (scheduled - started, prepared - scheduled, forwarded - prepared, clock() - forwarded)
        except Exception as error:
            return outputs + self.settle() + self._fail(plan, error)
        outputs += self.settle()
        self._launched = Launched(plan, drawn, embeddings, times)
        return outputs if self._overlap else self.settle()

    def settle(self) -> list[TokenOutput]:
        """Wait for the step that is under way, if there is one, and book it."""
        launched, self._launched = self._launched, None
        if launched is None:
            return []
        plan, started = launched.plan, time.monotonic()
        try:
            samples = launched.drawn.wait()
        except Exception as error:
            return self._fail(plan, error)
        arrived = time.monotonic()
        alive = [i for i, seq in enumerate(plan.seqs) if seq.status is Status.RUNNING]
        outputs = _attach_logprobs(plan, samples, self.scheduler.update(plan, samples.tokens))
        for output in outputs if launched.embeddings else ():
            output.embedding = launched.embeddings.get(output.seq)
        num_tokens = [plan.num_tokens[i] for i in alive]
        self.stats.count_step(num_tokens, outputs, time.monotonic())
        if self.events.enabled:
            schedule, prepare, forward, sample = launched.times
            times = schedule, prepare, forward, sample + arrived - started, time.monotonic() - arrived
            self._emit_step([plan.seqs[i].arrival for i in alive], num_tokens, plan.budget, outputs, times)
        return outputs

    def _fail(self, plan: Plan, error: Exception) -> list[TokenOutput]:
        """A forward pass failed (out of memory, say): whoever was in it ends with the error, the others go on."""
        log.error("step %d failed; ending the %d requests in it", self.stats.steps, len(plan.seqs), exc_info=error)
        message = f"the model's forward pass failed: {type(error).__name__}: {error}"
        ended = []
        for seq in plan.seqs:
            ended += self.scheduler.finish(seq.request_id, seq.index, "error", message)
        return ended

    def _emit_step(
        self,
        sequences: list[int],
        num_tokens: list[int],
        budget: int,
        outputs: list[TokenOutput],
        times: tuple[float, float, float, float, float],
    ) -> None:
        for output in outputs:
            if output.logprobs is not None and output.token is not None:
                self.events.emit(_logprobs_event(output.seq, output.token, output.logprobs))
        queue, now = self.scheduler.latest, time.monotonic()
        self.last_step = StepDone(
            self.stats.steps,
            sequences,
            num_tokens,
            budget,
            len(self.scheduler.waiting),
            queue.wait_reason,
            queue.leading,
            *times,
            now,
        )
        self.events.emit(self.last_step)
        self.events.expire(now)


def _logprobs_event(seq: Sequence, token: int, logprobs: Logprobs) -> TokenLogprobs:
    logprob, rank, top_ids, top_logprobs, *shape = logprobs
    lowest = np.maximum(top_logprobs, LOWEST_LOGPROB).tolist()
    chosen = max(logprob, LOWEST_LOGPROB)
    return TokenLogprobs(seq.arrival, len(seq) - 1, token, chosen, rank, top_ids.tolist(), lowest, *shape)


def _attach_logprobs(plan: Plan, samples: Samples, outputs: list[TokenOutput]) -> list[TokenOutput]:
    """Hand log-probabilities to the outputs they belong to; those of an unfinished prompt go out without a token. Who
    ended while the step was under way has neither output nor row."""
    if not samples.logprobs and not samples.prompt_logprobs:
        return outputs
    by_sequence = {output.seq: output for output in outputs}
    for i, logprobs in samples.logprobs.items():
        if (output := by_sequence.get(plan.seqs[i])) is not None:
            output.logprobs = logprobs
    for i, (start, over_prompt) in samples.prompt_logprobs.items():
        seq = plan.seqs[i]
        if seq not in by_sequence and seq.status is Status.RUNNING:
            outputs.append(TokenOutput(seq, None))
            by_sequence[seq] = outputs[-1]
        if (output := by_sequence.get(seq)) is not None:
            output.prompt_start, output.prompt_logprobs = start, over_prompt
    return outputs
