"""From a conversation and its parameters to what the engine thread runs. All of this happens before, outside it."""

import asyncio
import secrets
import time
import uuid
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_nb.chat_options import ChatOptions
from vllm_nb.engine.grammar import Grammar
from vllm_nb.engine.sequence import Sequence
from vllm_nb.errors import ContextLengthError, RequestError
from vllm_nb.messages import ChatMessage, as_messages
from vllm_nb.sampling import SamplingParams
from vllm_nb.text.constraints import MAX_SECONDS, Grammars
from vllm_nb.text.dialogue import Dialogue
from vllm_nb.text.grammar import output_grammar
from vllm_nb.text.parsing.parser import OutputParser
from vllm_nb.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A raw prompt instead of messages: no chat template. Give `text` or `token_ids`.

    parse_special: whether special tokens written out in `text` count as such.
    """

    text: str | None = None
    token_ids: Seq[int] | None = None
    parse_special: bool = True

    def __post_init__(self) -> None:
        if (self.text is None) == (self.token_ids is None):
            raise RequestError("a Prompt takes either text or token_ids")
        if not isinstance(self.text, str | None):
            raise RequestError(f"the text of a Prompt must be a text, not {self.text!r}")


Message = ChatMessage | Mapping[str, Any]
Conversation = Prompt | str | Message | list[Message]


@dataclass(slots=True)
class Request:
    """One sequence a choice, and what reads its output; no parsers where that is the answer as it stands.

    matcher: the grammar that the output has to follow, while it is being compiled. `wait` or `ready` before submitting.
    """

    sequences: list[Sequence]
    parsers: list[OutputParser] | None = None
    include_reasoning: bool = True
    matcher: "Future[LLMatcher] | None" = None
    eos_ids: tuple[int, ...] = ()

    def wait(self) -> None:
        """Raises RequestError for a grammar that cannot be compiled."""
        if self.matcher is not None:
            with _as_request_error():
                self._constrain(self.matcher.result(MAX_SECONDS))

    async def ready(self) -> None:
        """As `wait`."""
        if self.matcher is not None:
            with _as_request_error():
                self._constrain(await asyncio.wait_for(asyncio.wrap_future(self.matcher), MAX_SECONDS))

    def _constrain(self, matcher: "LLMatcher") -> None:
        first, *rest = self.sequences
        first.grammar = grammar = Grammar(matcher, self.eos_ids)
        for seq in rest:
            seq.grammar = grammar.fork()


@contextmanager
def _as_request_error() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise RequestError(f"the structured output takes longer than {MAX_SECONDS:g} s to compile") from None


class RequestMaker:
    """defaults: the sampling parameters of requests that give none. max_model_len, vocab_size: of the engine. too_long:
    what to do about a longer prompt, in words."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        dialogue: Dialogue,
        *,
        defaults: SamplingParams,
        eos_ids: frozenset[int],
        max_model_len: int,
        too_long: str,
        vocab_size: int,
    ):
        self._tokenizer, self._dialogue = tokenizer, dialogue
        self._defaults, self._eos_ids = defaults, eos_ids
        self._max_model_len, self._too_long, self._vocab_size = max_model_len, too_long, vocab_size
        self._grammars = Grammars(tokenizer, eos_ids, vocab_size, dialogue.control_ids)

    def make(self, params: SamplingParams | None, conversation: Conversation, options: ChatOptions) -> Request:
        """Raises RequestError when it can never be served, TypeError for other params."""
        if not isinstance(params, SamplingParams | None):
            raise TypeError(f"params must be SamplingParams(...), or None for the model's own, not {params!r}")
        prompt = self.encode(conversation, options)
        params = (params or SamplingParams()).with_defaults(self._defaults)
        self._check(params, prompt)
        request, wanted = Request(self._sequences(params, prompt)), params.structured_outputs
        if isinstance(conversation, Prompt):
            grammar = None if wanted is None else output_grammar(wanted)
        else:
            request.include_reasoning = options.include_reasoning
            request.parsers = self._dialogue.parsers(prompt, options, wanted, params.n)
            grammar = self._dialogue.grammar(prompt, options, wanted)
        if grammar is not None:
            request.matcher, request.eos_ids = self._grammars.submit(grammar), self._grammars.eos_ids
        return request

    def encode(self, conversation: Conversation, options: ChatOptions) -> list[int]:
        """The token ids the model will see. Raises RequestError for empty messages, unknown roles, bad ids."""
        if not isinstance(conversation, Prompt):
            return self._dialogue.encode(as_messages(conversation), options)
        if options != ChatOptions():
            raise RequestError("a raw prompt takes neither tools nor other chat options: give messages instead")
        if conversation.text is not None:
            special = conversation.parse_special
            return self._tokenizer.encode(conversation.text, add_special=True, parse_special=special)
        ids = list(conversation.token_ids or ())
        bad = next((i for i in ids if not isinstance(i, int) or not 0 <= i < self._vocab_size), None)
        if bad is not None:
            raise RequestError(f"token id {bad!r} in the prompt is outside the vocabulary of {self._vocab_size:,}")
        return ids

    def _sequences(self, params: SamplingParams, prompt: list[int]) -> list[Sequence]:
        """The answers to one prompt: each with a seed of its own, the first with the prompt's log-probabilities."""
        room = self._max_model_len - len(prompt)
        shared: dict[str, Any] = {
            "request_id": f"req-{uuid.uuid4().hex[:16]}",
            "max_tokens": min(params.max_tokens or room, room),
            "stop_ids": frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_ids),
            "arrived": time.monotonic(),
        }
        seed = secrets.randbits(63) if params.seed is None else params.seed
        tokens = np.array(prompt, np.int32)
        first = Sequence.new(tokens, index=0, params=params, seed=seed, **shared)
        rest_params = replace(params, prompt_logprobs=None)
        rest = (
            Sequence.new(tokens, index=i, params=rest_params, seed=seed + i, leader=first, **shared)
            for i in range(1, params.n)
        )
        return [first, *rest]

    def _check(self, params: SamplingParams, prompt: list[int]) -> None:
        longest = self._max_model_len - 1
        if not prompt:
            raise RequestError("the prompt is empty: give at least one token")
        if len(prompt) > longest:
            raise ContextLengthError(
                f"the prompt has {len(prompt):,} tokens and this engine takes at most {longest:,} and one to answer; "
                f"{self._too_long}"
            )
        for name, ids in (("logit_bias", params.logit_bias or ()), ("stop_token_ids", params.stop_token_ids)):
            bad = next((i for i in ids if i >= self._vocab_size), None)
            if bad is not None:
                raise RequestError(f"{name} names token {bad}, outside the vocabulary of {self._vocab_size:,}")


def chat_options(options: Mapping[str, Any]) -> ChatOptions:
    """Raises TypeError for an unknown name, RequestError for a wrong value."""
    known = [f.name for f in fields(ChatOptions)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"unknown option {', '.join(unknown)}; chat requests take {', '.join(known)}")
    return ChatOptions(**options)
