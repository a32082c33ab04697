"""From a conversation and its parameters to what the engine thread runs. All of this happens before, outside it."""

import secrets
import time
import uuid
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from vllm_nb.chat_options import ChatOptions
from vllm_nb.engine.sequence import Sequence
from vllm_nb.errors import RequestError
from vllm_nb.messages import ChatMessage, as_messages
from vllm_nb.sampling import SamplingParams
from vllm_nb.text.dialogue import Dialogue
from vllm_nb.text.parsing.parser import OutputParser
from vllm_nb.text.tokenizer import Tokenizer


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


Message = ChatMessage | Mapping[str, Any]
Conversation = Prompt | str | Message | list[Message]


@dataclass(slots=True)
class Request:
    """One sequence a choice, and what reads its output; no parsers where that is the answer as it stands."""

    sequences: list[Sequence]
    parsers: list[OutputParser] | None = None
    include_reasoning: bool = True


class RequestMaker:
    """defaults: the sampling parameters of requests that give none. max_model_len, vocab_size: of the engine."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        dialogue: Dialogue,
        *,
        defaults: SamplingParams,
        eos_ids: frozenset[int],
        max_model_len: int,
        vocab_size: int,
    ):
        self._tokenizer, self._dialogue = tokenizer, dialogue
        self._defaults, self._eos_ids = defaults, eos_ids
        self._max_model_len, self._vocab_size = max_model_len, vocab_size

    def make(self, params: SamplingParams | None, conversation: Conversation, options: ChatOptions) -> Request:
        """Raises RequestError when it can never be served."""
        prompt = self.encode(conversation, options)
        params = (params or SamplingParams()).with_defaults(self._defaults)
        self._check(params, prompt)
        sequences = self._sequences(params, prompt)
        if isinstance(conversation, Prompt):
            return Request(sequences)
        return Request(sequences, self._dialogue.parsers(prompt, options, params.n), options.include_reasoning)

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
        if params.structured_outputs is not None:
            raise RequestError("structured_outputs is not built yet: leave it out")
        if not prompt:
            raise RequestError("the prompt is empty: give at least one token")
        if len(prompt) > longest:
            raise RequestError(
                f"the prompt has {len(prompt):,} tokens and this engine takes at most {longest:,} and one to answer; "
                "shorten it, or start the engine with a larger max_model_len"
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
    chat = ChatOptions(**options)
    if chat.must_call:
        raise RequestError("tool_choice must be auto or none: forced calls are not built yet")
    return chat
