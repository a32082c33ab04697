"""OpenAI's /v1/completions: the model continues a text as it is, without a chat template."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from vllm_nb.errors import RequestError
from vllm_nb.outputs import LOWEST_LOGPROB, Choice, GenerationOutput, StreamItem, Timings, TokenLogprob, Usage
from vllm_nb.sampling import MAX_CHOICES
from vllm_nb.server.answering import answer, submit
from vllm_nb.server.errors import ApiError
from vllm_nb.server.host import EngineHost
from vllm_nb.server.openai_format import Format
from vllm_nb.server.openai_requests import GenerateRequest, TokenIds
from vllm_nb.text.detokenizer import Detokenizer

if TYPE_CHECKING:
    from vllm_nb.text.tokenizer import Tokenizer

MAX_PROMPTS = 256


class CompletionRequest(GenerateRequest):
    """POST /v1/completions. max_tokens: 16 unless given, as OpenAI has it; null: up to the context's end; with `echo`
    0, nothing but the prompt: its log-probabilities score a text."""

    prompt: str | TokenIds | list[str] | list[TokenIds]
    max_tokens: int | None = 16
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    suffix: str | None = None

    def prompts(self) -> list[str | TokenIds]:
        """One entry a prompt."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        prompts = [entry for entry in prompt if not isinstance(entry, int)]
        if prompt and not prompts:
            return [[entry for entry in prompt if isinstance(entry, int)]]
        if not 1 <= len(prompts) <= MAX_PROMPTS:
            raise RequestError(f"prompt must hold 1 to {MAX_PROMPTS} prompts, not {len(prompts)}")
        return [*prompts]

    @property
    def only_scores(self) -> bool:
        return bool(self.echo) and self.max_tokens == 0

    def _values(self) -> dict[str, Any]:
        self._check()
        values = super()._values()
        if self.best_of is not None and self.best_of > (self.n or 1):
            values |= {"n": self.best_of, "logprobs": self.logprobs or 0}
        if self.echo and self.logprobs is not None:
            values["prompt_logprobs"] = self.logprobs
        if self.only_scores:
            values["max_tokens"] = 1  # the engine gives one at least: it is left out of the answer
        return values

    def _logprobs(self) -> int | None:
        return self.logprobs

    def _check(self) -> None:
        if self.suffix:
            message = "suffix is not supported: the models here continue a text and do not fill gaps; leave it out"
            raise ApiError(400, message, "unsupported_parameter", param="suffix")
        if self.best_of is None:
            return
        if self.best_of < (self.n or 1):
            message = f"best_of must be at least n ({self.n or 1}), not {self.best_of}"
            raise ApiError(400, message, "invalid_value", param="best_of")
        if self.stream and self.best_of > (self.n or 1):
            message = "best_of above n cannot be streamed: the best is known at the end only"
            raise ApiError(400, message, "invalid_value", param="best_of")


def create_router(host: EngineHost) -> APIRouter:
    """The route over the engine of `host`."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue one or more texts."""
        from vllm_nb.api import Prompt

        engine = host.require_engine(body.model)
        prompts = body.prompts()
        conversations = [Prompt(text=p) if isinstance(p, str) else Prompt(token_ids=p) for p in prompts]
        streams = await submit(engine, body.sampling_params(), conversations)
        form = TextFormat(
            id=streams[0].request_id,
            model=engine.model_name,
            tokenizer=engine.tokenizer,
            n=body.n or 1,
            include_usage=body.include_usage,
            with_ids=body.return_token_ids,
            prompt_token_ids=streams[0].output.prompt_token_ids,
            with_logprobs=body.logprobs is not None,
            with_prompt_logprobs=body.prompt_logprobs is not None,
            only_scores=body.only_scores,
        )
        if body.echo:
            form.echoes = [
                Echo(prompt if isinstance(prompt, str) else None, stream.output.prompt_token_ids)
                for prompt, stream in zip(prompts, streams, strict=True)
            ]
        return await answer(host, request, streams, form, streamed=bool(body.stream))

    return router


@dataclass
class Echo:
    """A prompt to repeat before its answers: its text, where it was given as one, and its ids."""

    text: str | None
    ids: list[int]
    logprobs: list[TokenLogprob | None] = field(default_factory=list)

    def shown(self, tokenizer: "Tokenizer") -> str:
        return tokenizer.decode(self.ids, skip_special=False) if self.text is None else self.text

    @property
    def scores(self) -> list[TokenLogprob | None]:
        """One a token; None for the first, and for those that an abort came before."""
        return self.logprobs + [None] * (len(self.ids) - len(self.logprobs))


@dataclass(kw_only=True)
class TextFormat(Format):
    """The shape of a text completion. only_scores: the one token that was generated is not wanted.

    The prompt's log-probabilities are, in one piece, on every choice as in vLLM, and the first prompt's also at the top
    as in a chat's answer; of a stream, which vLLM has none of, at the top of the prompt's own chunks.
    """

    with_logprobs: bool = False
    with_prompt_logprobs: bool = False
    only_scores: bool = False
    echoes: list[Echo] = field(default_factory=list)  # one a prompt, or none
    _offsets: "dict[int, Offsets]" = field(default_factory=dict, init=False)

    kind = chunk_kind = "text_completion"

    def _of_prompt(self, prompt: int, item: StreamItem) -> list[TokenLogprob | None] | None:
        """With an echo, all of them at once: what waits for it has no chunk of its own."""
        if not self.echoes:
            return item.prompt_logprobs
        known, index = self.echoes[prompt].logprobs, prompt * self.n + item.index
        known += item.prompt_logprobs or ()
        return known if known and item.index == 0 and not (index in self._sent or self._waits(index, item)) else None

    def last_chunks(self, chunks: list[dict[str, Any]], usage: Usage, timings: Timings) -> list[dict[str, Any]]:
        return super().last_chunks(chunks, self._paid(usage), timings)

    def whole(self, outputs: Sequence[GenerationOutput], usage: Usage, timings: Timings) -> dict[str, Any]:
        for echo, output in zip(self.echoes, outputs, strict=False):
            echo.logprobs = output.prompt_logprobs or []
        body = super().whole([self._best(output) for output in outputs], self._paid(usage), timings)
        if self.with_prompt_logprobs:
            scores = [[_by_id(entry) for entry in output.prompt_logprobs or ()] for output in outputs]
            for choice in body["choices"]:
                choice["prompt_logprobs"] = scores[choice["index"] // self.n]
        return body

    def _paid(self, usage: Usage) -> Usage:
        return replace(usage, completion_tokens=0) if self.only_scores else usage

    def _best(self, output: GenerationOutput) -> GenerationOutput:
        """With its `n` best choices: those of the highest log-probability a token."""
        if len(output.choices) == self.n:
            return output
        ranked = sorted(output.choices, key=_mean_logprob, reverse=True)[: self.n]
        return replace(output, choices=[replace(choice, index=place) for place, choice in enumerate(ranked)])

    def _pieces(self, index: int, item: StreamItem) -> list[dict[str, Any]]:
        says_something = item.text or item.token_ids or item.finish_reason or item.prompt_logprobs
        return [self._choice(index, item)] if says_something and not self._waits(index, item) else []

    def _waits(self, index: int, item: StreamItem) -> bool:
        """The log-probabilities of an echo come in pieces; they are sent together, with the first token."""
        return bool(self.echoes) and not (item.token_ids or item.finish_reason) and index not in self._sent

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return self._choice(index, choice)

    def _choice(self, index: int, part: StreamItem | Choice) -> dict[str, Any]:
        echo = self.echoes[index // self.n] if self.echoes and index not in self._sent else None
        opening = "" if echo is None else echo.shown(self.tokenizer)
        text, entries = (opening, []) if self.only_scores else (opening + part.text, list(part.logprobs or ()))
        self._sent[index] = self._sent.get(index, 0) + len(text)
        logprobs = self._logprobs(index, entries, echo) if self.with_logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs} | self._ending(part) | self._ids(part)

    def _logprobs(self, index: int, entries: list[TokenLogprob], echo: Echo | None) -> dict[str, Any]:
        """The older shape: parallel lists, the chosen token among the alternatives. Nothing predicts a prompt's first
        token: null."""
        offsets = self._offsets.setdefault(index, Offsets(self.tokenizer))
        prompt = [] if echo is None else echo.ids
        scored = [*([] if echo is None else echo.scores), *entries]
        starts = [] if echo is None else offsets.of_prompt(echo)
        ours = (
            {"content": [self._with_top(entry) for entry in entries]} if self.with_ids else {}
        )  # chat's, which has ids
        return ours | {
            "tokens": [*map(self.tokenizer.token_text, prompt), *(entry.text for entry in entries)],
            "token_logprobs": [None if entry is None else _finite(entry) for entry in scored],
            "top_logprobs": [None if entry is None else _alternatives(entry) for entry in scored],
            "text_offset": starts + [offsets.of_output(entry.token_id) for entry in entries],
        }


class Offsets:
    """Where the tokens of a growing text begin in it, in characters."""

    def __init__(self, tokenizer: "Tokenizer"):
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._position = 0

    def of_output(self, token: int) -> int:
        """Of the next token."""
        start = self._position
        self._position += len(self._detokenizer.push((token,)))
        return start

    def of_prompt(self, echo: Echo) -> list[int]:
        """Of a prompt's tokens. Special ones are shown by name there, but for one that the tokeniser put before a
        text."""
        found = []
        named = len(echo.shown(self._tokenizer)) - len(self._tokenizer.decode(echo.ids, skip_special=False))
        for i, token in enumerate(echo.ids):
            found.append(self.of_output(token))
            if token in self._tokenizer.special_ids and (i or named >= 0):
                self._position += len(self._tokenizer.token_text(token))
        return found


def _by_id(entry: TokenLogprob | None) -> dict[int, dict[str, Any]] | None:
    """As vLLM has it: the prompt's own token first, then the likeliest."""
    if entry is None:
        return None
    entries = [entry, *(other for other in entry.top if other.token_id != entry.token_id)]
    return {e.token_id: {"logprob": _finite(e), "rank": e.rank, "decoded_token": e.text} for e in entries}


def _alternatives(entry: TokenLogprob) -> dict[str, float]:
    return {other.text: _finite(other) for other in (*entry.top, entry)}


def _finite(entry: TokenLogprob) -> float:
    return max(entry.logprob, LOWEST_LOGPROB)


def _mean_logprob(choice: Choice) -> float:
    entries = choice.logprobs or []
    return sum(_finite(entry) for entry in entries) / max(1, len(entries))
