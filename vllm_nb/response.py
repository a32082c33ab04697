"""One request's answer as it comes: from the engine's token outputs to stream items. Runs outside the engine thread."""

import time
from collections.abc import Callable

import numpy as np

from vllm_nb.engine.scheduler import PromptLogprobs, TokenOutput
from vllm_nb.errors import GenerationError, RequestError
from vllm_nb.outputs import Choice, GenerationOutput, StreamItem, Timings, TokenLogprob, Usage
from vllm_nb.request import Request
from vllm_nb.text.output_text import OutputText
from vllm_nb.text.parsing.parser import Parsed
from vllm_nb.text.tokenizer import Tokenizer

Abort = Callable[[str, int, str], None]  # (request_id, index, reason)


class Response:
    """Detokenises, finds stop strings (and then ends that sequence in the engine), counts, and collects the whole.

    `receive` takes the outputs of one step; `output` is the request so far, complete when `finished`.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, abort: Abort):
        sequences = request.sequences
        first = sequences[0]
        self.request_id = first.request_id
        self.finished = False
        self._sequences = sequences
        self._tokenizer = tokenizer
        self._abort = abort
        params = first.params
        stop = params.stop or ()
        self._texts = [OutputText(tokenizer, stop, params.min_tokens) for _ in sequences]
        self._parsers = request.parsers
        self._include_reasoning = request.include_reasoning
        self._open = len(sequences)
        choices = [Choice(i, logprobs=None if params.logprobs is None else []) for i in range(len(sequences))]
        prompt = first.tokens[: first.prompt_len].tolist()
        usage, timings = Usage(prompt_tokens=len(prompt)), Timings(arrived=first.arrived)
        self.output = GenerationOutput(self.request_id, choices, usage, timings, prompt)
        if params.prompt_logprobs is not None:
            self.output.prompt_logprobs = [None]
        self._prompt_told = 0  # of `output.prompt_logprobs`, how many an item had

    def receive(self, outputs: list[TokenOutput]) -> list[StreamItem]:
        """Raises GenerationError when the engine ended the request with an error, RequestError when it was to blame."""
        return [item for output in outputs if (item := self._one(output)) is not None]

    def settle(self, outputs: list[TokenOutput]) -> bool:
        """As `receive` for who wants only the whole: a failure goes to `output.error`. Returns whether it has ended."""
        try:
            self.receive(outputs)
        except (GenerationError, RequestError) as error:
            self.output.error = str(error)
        return self.finished or self.output.error is not None

    def _one(self, output: TokenOutput) -> StreamItem | None:
        seq, choice = output.seq, self.output.choices[output.seq.index]
        if choice.finish_reason is not None:  # ended here by a stop string; the engine was a token ahead
            return None
        if output.finish_reason == "error":
            self.cancel()
            choice.finish_reason = "error"
            raise RequestError(output.error) if output.refused else GenerationError(output.error)
        prompt_logprobs = self._prompt_logprobs(output)
        item = StreamItem(self.request_id, seq.index, "", [], prompt_logprobs=prompt_logprobs)
        if output.token is not None:
            self._add_token(item, output, choice)
        elif not output.finish_reason and not prompt_logprobs:
            return None
        if choice.finish_reason is None and output.finish_reason:
            self._finish_text(item, output.finish_reason)
            asked_for = output.stop_reason in seq.params.stop_token_ids  # else the model's own end
            self._close(choice, output.finish_reason, output.stop_reason if asked_for else None)
        choice.text += item.text
        choice.reasoning += item.reasoning
        if choice.finish_reason:
            item.finish_reason, item.stop_reason = choice.finish_reason, choice.stop_reason
            self._account(item)
        return item

    def _add_token(self, item: StreamItem, output: TokenOutput, choice: Choice) -> None:
        seq, token = output.seq, output.token
        assert token is not None
        item.token_ids.append(token)
        choice.token_ids.append(token)
        if output.logprobs is not None and choice.logprobs is not None:
            entry = self._logprob(token, *output.logprobs[:4])
            entry.entropy, entry.log_mass = output.logprobs.entropy, output.logprobs.log_mass
            item.logprobs = [entry]
            choice.logprobs += item.logprobs
        if output.stop_reason is not None:  # a token that ends the output is not part of its text
            return
        text = self._texts[seq.index]
        if self._parsers is None:
            item.text = text.push(item.token_ids)
        else:
            self._say(item, self._parsers[seq.index].push(item.token_ids), num_tokens=1)
        if text.stopped is not None:
            self._close(choice, "stop", text.stopped)
            if not output.finish_reason:
                self._abort(self.request_id, seq.index, "stop")

    def _say(self, item: StreamItem, parsed: Parsed, num_tokens: int) -> None:
        """Stop texts end the answer, so they are looked for in nothing else."""
        item.text += self._texts[item.index].scan(parsed.text, num_tokens)
        item.tool_calls += parsed.tool_calls
        if self._include_reasoning:
            item.reasoning += parsed.reasoning

    def _finish_text(self, item: StreamItem, reason: str) -> None:
        if self._parsers is not None:
            self._say(item, self._parsers[item.index].finish(cut=reason in ("length", "abort")), num_tokens=0)
        item.text += self._texts[item.index].finish()

    def _close(self, choice: Choice, reason: str, stop_reason: str | int | None) -> None:
        if self._parsers is not None:
            choice.tool_calls = self._parsers[choice.index].tool_calls
            if reason == "stop" and choice.tool_calls:
                reason = "tool_calls"
        choice.finish_reason, choice.stop_reason = reason, stop_reason
        self._open -= 1
        self.finished = self._open == 0

    def _account(self, item: StreamItem) -> None:
        """Totals, once the last choice has ended."""
        if not self.finished:
            return
        first, timings = self._sequences[0], self.output.timings
        usage = self.output.usage
        usage.completion_tokens = sum(len(choice.token_ids) for choice in self.output.choices)
        usage.cached_tokens = first.num_cached
        usage.reasoning_tokens = sum(parser.reasoning_tokens for parser in self._parsers or ())
        timings.scheduled = first.scheduled
        timings.first_token = min((s.first_token for s in self._sequences if s.first_token is not None), default=None)
        timings.finished = time.monotonic()
        item.usage, item.timings = usage, timings

    def cancel(self) -> None:
        """End what still runs; nothing more is expected."""
        for choice in self.output.choices:
            if choice.finish_reason is None:
                self._abort(self.request_id, choice.index, "abort")

    # Log-probabilities

    def _prompt_logprobs(self, output: TokenOutput) -> list[TokenLogprob | None] | None:
        """Those that no item had yet, and with the first of all the None before them, also where there are no more."""
        known = self.output.prompt_logprobs
        if known is None or output.seq is not self._sequences[0]:
            return None
        if output.prompt_logprobs is not None:
            self._learn(known, output.prompt_start, output.prompt_logprobs)
        fresh, self._prompt_told = known[self._prompt_told :], len(known)
        return fresh or None

    def _learn(self, known: list[TokenLogprob | None], start: int, found: PromptLogprobs) -> None:
        """Append what is new: a request recomputed after preemption gives the rest again."""
        logprob, rank, top_ids, top_logprobs = found
        for i in range(len(logprob)):
            if start + i == len(known):
                token = self.output.prompt_token_ids[len(known)]
                known.append(self._logprob(token, float(logprob[i]), int(rank[i]), top_ids[i], top_logprobs[i]))

    def _logprob(self, token: int, logprob: float, rank: int, top_ids: np.ndarray, top: np.ndarray) -> TokenLogprob:
        text = self._tokenizer.token_text
        likeliest = enumerate(zip(top_ids.tolist(), top.tolist(), strict=True), start=1)
        alternatives = [TokenLogprob(t, text(t), p, place) for place, (t, p) in likeliest]
        return TokenLogprob(token, text(token), logprob, rank, alternatives)
