"""A model's answer as a value: in a notebook it shows its text and what it cost."""

import html
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from vllm_nb.outputs import Choice, StreamItem, TokenLogprob, Usage

if TYPE_CHECKING:
    from vllm_nb.client.base import Query
    from vllm_nb.client.http import EngineClient


@dataclass(slots=True)
class RequestTimings:
    """Seconds since the request arrived at the engine, and tokens a second after the first; None: unknown."""

    queued_s: float | None = None
    ttft_s: float | None = None
    decode_tokens_per_s: float | None = None
    total_s: float | None = None


class _Asked:
    """Knows where it came from. No dataclass: that is neither shown, compared, copied nor pickled."""

    _origin: "tuple[Query, EngineClient] | None" = None

    def of(self, query: "Query", client: "EngineClient") -> Self:
        """This, with what was asked, so that it can be asked again."""
        self._origin = (query, client)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_origin"}


@dataclass
class Completion(_Asked):
    """A finished answer, or what there was of it when it was interrupted (finish_reason "abort").

    `text`, `token_ids`, `logprobs` and `finish_reason` speak of the first of `choices`. usage and timings are None
    where the answer ended before they came.
    """

    model: str = ""
    request_id: str = ""
    choices: list[Choice] = field(default_factory=lambda: [Choice()])
    usage: Usage | None = None
    timings: RequestTimings | None = None
    prompt_token_ids: list[int] = field(default_factory=list, repr=False)  # of our engines
    prompt_logprobs: list[TokenLogprob | None] | None = None  # where asked for
    error: str | None = None  # why there is no answer, where several were asked for at once; alone it raises instead
    verbatim: bool = False  # shown as it stands, not as Markdown: the continuation of a text rather than an answer

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.choices[0].token_ids

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        return self.choices[0].logprobs

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason

    @classmethod
    def failed(cls, message: str) -> "Completion":
        """In the place of an answer that there is none of."""
        return cls(choices=[Choice(finish_reason="error")], error=message)

    def add(self, item: StreamItem) -> None:
        """Append a piece of the stream."""
        while len(self.choices) <= item.index:
            self.choices.append(Choice(len(self.choices)))
        choice = self.choices[item.index]
        choice.text += item.text
        choice.token_ids += item.token_ids
        if item.logprobs is not None:
            choice.logprobs = (choice.logprobs or []) + item.logprobs
        if item.prompt_logprobs is not None:
            self.prompt_logprobs = (self.prompt_logprobs or []) + item.prompt_logprobs
        if item.finish_reason is not None:
            choice.finish_reason, choice.stop_reason = item.finish_reason, item.stop_reason

    def mark_aborted(self) -> None:
        """Every choice that has not ended was cut off."""
        for choice in self.choices:
            choice.finish_reason = choice.finish_reason or "abort"

    @property
    def summary(self) -> str:
        """One line: `12 tokens · 85.3 tok/s · first token 0.11 s · 32 of 45 prompt tokens from cache`."""
        return " · ".join(self._facts())

    def _facts(self) -> Iterable[str]:
        tokens = sum(len(choice.token_ids) for choice in self.choices)
        if self.usage is not None:
            tokens = self.usage.completion_tokens
        yield f"{tokens:,} token" if tokens == 1 else f"{tokens:,} tokens"
        timings = self.timings or RequestTimings()
        if timings.decode_tokens_per_s is not None:
            yield f"{timings.decode_tokens_per_s:.1f} tok/s"
        if timings.ttft_s is not None:
            yield f"first token {timings.ttft_s:.2f} s"
        if self.usage is not None and self.usage.cached_tokens:
            yield f"{self.usage.cached_tokens:,} of {self.usage.prompt_tokens:,} prompt tokens from cache"
        reasons = {choice.finish_reason for choice in self.choices}
        if "length" in reasons:
            yield "cut off at max_tokens or the context's end"
        if "abort" in reasons:
            yield "interrupted"

    def __str__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """Jupyter's display protocol: the text for terminals, Markdown with the summary below for notebooks."""
        texts = [choice.text for choice in self.choices]
        if self.verbatim:
            return {"text/plain": "\n\n".join(texts), "text/html": self._html(texts)}
        markdown = "\n\n---\n\n".join(_closed(text) for text in texts)
        return {
            "text/plain": "\n\n".join(texts),
            "text/markdown": f"{markdown}\n\n<small>{self.summary}</small>",
        }

    def _html(self, texts: list[str]) -> str:
        blocks = (f'<div style="white-space:pre-wrap">{html.escape(text)}</div>' for text in texts)
        return f"{'<hr>'.join(blocks)}<p><small>{html.escape(self.summary)}</small></p>"


def _closed(markdown: str) -> str:
    """With a code fence that was left open, as in an answer cut off, closed: what follows is no code."""
    fences = [line.lstrip() for line in markdown.splitlines() if line.lstrip().startswith("```")]
    return f"{markdown}\n```" if len(fences) % 2 else markdown
