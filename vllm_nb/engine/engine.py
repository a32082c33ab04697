"""The engine: one step loop over scheduler, runner and sampler. One thread owns all of it (engine/loop.py)."""

import logging
import time

import numpy as np

from vllm_nb.engine.events import EventLog
from vllm_nb.engine.pooler import pool
from vllm_nb.engine.runner import Runner
from vllm_nb.engine.sampler import Sampler, Samples
from vllm_nb.engine.scheduler import Logprobs, Plan, Scheduler, TokenOutput
from vllm_nb.engine.sequence import Sequence
from vllm_nb.engine.stats import EngineStats
from vllm_nb.events import StepDone, TokenLogprobs
from vllm_nb.inspection.info import EngineInfo

log = logging.getLogger(__name__)

LOWEST_LOGPROB = -9999.0  # what OpenAI's API says for impossible tokens


class EngineCore:
    """What a step needs, and the step. Not thread-safe."""

    def __init__(self, scheduler: Scheduler, runner: Runner, sampler: Sampler, events: EventLog, info: EngineInfo):
        self.scheduler = scheduler
        self.runner = runner
        self.sampler = sampler
        self.events = events
        self.info = info
        self.stats = EngineStats()
        self.last_step: StepDone | None = None  # as far as anybody watched

    def step(self) -> list[TokenOutput]:
        """Compute the next tokens of whoever is scheduled; what ended or went on in this step."""
        clock = time.monotonic
        started = clock()
        plan = self.scheduler.schedule()
        scheduled = clock()
        if not plan.seqs:
            return []
        try:
            batch, logits_row = self.runner.prepare(plan)
            prepared = clock()
            logits, hidden = self.runner.forward(batch)
            forwarded = clock()
            samples = self.sampler(logits, plan, logits_row)
            embeddings = pool(hidden, plan) if plan.pooled else {}
            sampled = clock()
        except Exception as error:
            return self._fail(plan, error)
        self.runner.rows.append(plan, samples.tokens)
        outputs = _attach_logprobs(plan, samples, self.scheduler.update(plan, samples.tokens))
        for output in outputs if embeddings else ():
            output.embedding = embeddings.get(output.seq)
        self.stats.count_step(plan.num_tokens, outputs, clock())
        if self.events.enabled:
            times = (scheduled - started, prepared - scheduled, forwarded - prepared, sampled - forwarded)
            self._emit_step(plan, outputs, times, clock() - sampled)
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
        self, plan: Plan, outputs: list[TokenOutput], times: tuple[float, float, float, float], update: float
    ) -> None:
        for output in outputs:
            if output.logprobs is not None and output.token is not None:
                self.events.emit(_logprobs_event(output.seq, output.token, output.logprobs))
        sequences = [seq.arrival for seq in plan.seqs]
        now = time.monotonic()
        self.last_step = StepDone(
            self.stats.steps,
            sequences,
            plan.num_tokens,
            plan.budget,
            len(self.scheduler.waiting),
            plan.wait_reason,
            plan.leading,
            *times,
            update,
            now,
        )
        self.events.emit(self.last_step)
        self.events.expire(now)


def _logprobs_event(seq: Sequence, token: int, logprobs: Logprobs) -> TokenLogprobs:
    logprob, rank, top_ids, top_logprobs, *shape = logprobs
    lowest = np.maximum(top_logprobs, LOWEST_LOGPROB).tolist()  # JSON has no infinity
    chosen = max(logprob, LOWEST_LOGPROB)
    return TokenLogprobs(seq.arrival, len(seq) - 1, token, chosen, rank, top_ids.tolist(), lowest, *shape)


def _attach_logprobs(plan: Plan, samples: Samples, outputs: list[TokenOutput]) -> list[TokenOutput]:
    """Hand log-probabilities to the outputs they belong to; those of an unfinished prompt go out without a token."""
    if not samples.logprobs and not samples.prompt_logprobs:
        return outputs
    by_sequence = {output.seq: output for output in outputs}
    for i, logprobs in samples.logprobs.items():
        by_sequence[plan.seqs[i]].logprobs = logprobs
    for i, (start, over_prompt) in samples.prompt_logprobs.items():
        seq = plan.seqs[i]
        if seq not in by_sequence:
            outputs.append(TokenOutput(seq, None))
        output = by_sequence.get(seq, outputs[-1])
        output.prompt_start, output.prompt_logprobs = start, over_prompt
    return outputs
