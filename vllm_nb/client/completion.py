"""A model's answer as a value: in a notebook it shows its text and what it cost."""

import html
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from vllm_nb.errors import RequestError, VllmNbError
from vllm_nb.messages import ToolCall
from vllm_nb.outputs import Choice, FirstChoice, StreamItem, TokenLogprob, ToolCallDelta, Usage

if TYPE_CHECKING:
    from vllm_nb.client.base import Query
    from vllm_nb.client.http import EngineClient
    from vllm_nb.client.schema import Shape
    from vllm_nb.notebook.panels.picture import Picture


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
    _values: list[Any] | None = None  # parsed already

    def of(self, query: "Query", client: "EngineClient") -> Self:
        """This, with what was asked, so that it can be asked again."""
        self._origin = (query, client)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_origin"}

    def _asked(self) -> "tuple[Query, EngineClient]":
        if self._origin is None:
            raise RequestError("this completion does not know its engine any more (it was copied or loaded)")
        return self._origin


@dataclass
class Completion(_Asked, FirstChoice):
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
    def value(self) -> Any:
        """The answer as what `schema` asked for, checked. Raises AnswerError where it is not that: cut off, or of a
        server that does not hold its answers to a schema; RequestError where none was asked for."""
        return self.values[0]

    @property
    def values(self) -> list[Any]:
        """Of each of `choices`."""
        if self._values is None:
            query, _ = self._asked()
            if query.shape is None:
                raise RequestError("no value was asked for: give schema=..., or --schema or --choice in a cell")
            self._values = [_value(query.shape, choice) for choice in self.choices]
        return self._values

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
        choice.reasoning += item.reasoning
        choice.token_ids += item.token_ids
        for piece in item.tool_calls:
            _add_call(choice.tool_calls, piece)
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

    def retry(self, **changes: Any) -> "Completion":
        """The same asked again, with these parameters changed; None takes one away. Raises as EngineClient.chat."""
        from vllm_nb.client.branching import retry

        query, client = self._asked()
        return retry(query, client, changes)

    def fork(self, at_token: int, token: int | str | None = None, *, choice: int = 0, **changes: Any) -> "Completion":
        """This answer up to its token number `at_token`, then another token and what the model writes after that.

        token: an id, or a text that is one token; None: the likeliest one that was not taken, where the answer was
        asked for with logprobs. changes: parameters. What stays is in the engine's prefix cache, so it costs nothing.
        Raises RequestError where that cannot be, and as EngineClient.generate.
        """
        from vllm_nb.client.branching import fork

        query, client = self._asked()
        forked = fork(self, client, {**query.params, **changes}, at_token, token, choice)
        return forked.of(query, client)

    def panel(self) -> "Picture":
        """The tokens with their alternatives, to look at and to fork at. Raises RequestError where the answer was not
        asked for with logprobs, VllmNbError where anywidget is missing."""
        from vllm_nb.notebook.panels.entry import tokens_of

        return tokens_of(self)

    @property
    def sampling(self) -> dict[str, float]:
        """What the tokens were sampled with: temperature, top_k, top_p, min_p, repetition_penalty; empty: unknown."""
        try:
            query, client = self._asked()
            given = {name: value for name, value in query.params.items() if value is not None}
            known = client.default_sampling
        except VllmNbError:  # another server than ours, or none any more
            return {}
        return {name: given.get(name, value) for name, value in known.items()}

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
        markdown = "\n\n---\n\n".join(_markdown(choice) for choice in self.choices)
        return {
            "text/plain": "\n\n".join(texts),
            "text/markdown": f"{markdown}\n\n<small>{self.summary}</small>",
        }

    def _html(self, texts: list[str]) -> str:
        blocks = (f'<div style="white-space:pre-wrap">{html.escape(text)}</div>' for text in texts)
        return f"{'<hr>'.join(blocks)}<p><small>{html.escape(self.summary)}</small></p>"


def _value(shape: "Shape", choice: Choice) -> Any:
    if choice.finish_reason in ("length", "abort"):
        from vllm_nb.client.schema import AnswerError

        why = "interrupted" if choice.finish_reason == "abort" else "cut off by max_tokens or the context's end"
        raise AnswerError(f"the answer was {why} before it was whole")
    return shape.value(choice.text)


def _add_call(calls: list[ToolCall], piece: ToolCallDelta) -> None:
    while len(calls) <= piece.index:
        calls.append(ToolCall("", "", ""))
    call = calls[piece.index]
    calls[piece.index] = ToolCall(
        call.id or piece.id or "", call.name or piece.name or "", call.arguments + piece.arguments
    )


def _markdown(choice: Choice) -> str:
    """The reasoning folded away, the text, and the calls as code."""
    blocks = []
    if choice.reasoning:
        thought = html.escape(choice.reasoning.strip())
        body = f'<div style="white-space:pre-wrap">{thought}</div>'
        blocks.append(f"<details><summary>Reasoning</summary>{body}</details>".replace("\n\n", "\n&#10;"))
    if choice.text:
        blocks.append(_closed(choice.text))
    blocks += [f"```\n{call.name}({call.arguments})\n```" for call in choice.tool_calls]
    return "\n\n".join(blocks)


def _closed(markdown: str) -> str:
    """With a code fence that was left open, as in an answer cut off, closed: what follows is no code."""
    fences = [line.lstrip() for line in markdown.splitlines() if line.lstrip().startswith("```")]
    return f"{markdown}\n```" if len(fences) % 2 else markdown
