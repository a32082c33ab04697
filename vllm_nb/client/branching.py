"""Asking again: the same request once more, or the same answer up to a token and then another one."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from vllm_nb.chat_options import ChatOptions
from vllm_nb.client.base import Query
from vllm_nb.client.completion import Completion
from vllm_nb.errors import RequestError
from vllm_nb.outputs import Choice

if TYPE_CHECKING:
    from vllm_nb.client.http import EngineClient

_HALF_A_CHARACTER = "\ufffd"


def retry(query: Query, client: "EngineClient", changes: Mapping[str, Any]) -> Completion:
    """The answer to the same messages or prompt, with some parameters changed; a changed value of None is left out."""
    params = {name: value for name, value in {**query.params, **changes}.items() if value is not None}
    if query.is_chat:
        return client.chat(query.content, **params)
    answer = client.generate(query.content, **params)  # type: ignore[arg-type]  # no chat: a text or token ids
    answer.verbatim = True
    return answer


def fork(
    answer: Completion,
    client: "EngineClient",
    params: Mapping[str, Any],
    at_token: int,
    token: int | str | None,
    choice: int,
) -> Completion:
    """`answer` up to its token number `at_token`, `token` in that one's place, and what the model writes after it.

    The prompt and the tokens that stay are in the engine's prefix cache. For penalties they count as prompt.
    """
    old = _choice(answer, choice)
    if not 0 <= at_token < len(old.token_ids):
        raise RequestError(
            f"at_token must be from 0 to {len(old.token_ids) - 1}, a token of the answer, not {at_token}"
        )
    taken = _alternative(old, at_token, token, client)
    kept = [*old.token_ids[:at_token], taken]
    params = {name: value for name, value in params.items() if name not in _OF_CHATS}
    if params.get("max_tokens") is not None:
        params["max_tokens"] = params["max_tokens"] - len(kept)
        if params["max_tokens"] < 1:
            return _whole(answer, kept, client.detokenize(kept))
    rest = client.generate([*answer.prompt_token_ids, *kept], **params)
    joined = _joined(answer, kept, rest, client)
    known = [entry for entry in old.logprobs[at_token].top if entry.token_id == taken] if old.logprobs else []
    if known and old.logprobs and rest.logprobs is not None:
        there = old.logprobs[at_token]
        forked = replace(known[0], top=there.top, entropy=there.entropy, log_mass=there.log_mass)
        joined.choices[0].logprobs = [*old.logprobs[:at_token], forked, *rest.logprobs]
    return joined


_OF_CHATS = {"n", "prompt_logprobs", *(f.name for f in fields(ChatOptions))}  # and of several answers


def _choice(answer: Completion, number: int) -> Choice:
    if not answer.prompt_token_ids:
        raise RequestError("fork needs the prompt's token ids, which only an engine of vllm_nb sends")
    if not 0 <= number < len(answer.choices):
        raise RequestError(f"choice must be from 0 to {len(answer.choices) - 1}, not {number}")
    return answer.choices[number]


def _alternative(old: Choice, at: int, token: int | str | None, client: "EngineClient") -> int:
    """A token id as it is; of a text its one token; None: the likeliest one that was not taken."""
    if isinstance(token, int):
        return token
    if isinstance(token, str):
        ids = client.tokenize(token)
        if len(ids) != 1:
            raise RequestError(f"{token!r} is {len(ids)} tokens to this model, {ids}: give one of them")
        return ids[0]
    entry = old.logprobs[at] if old.logprobs else None
    others = [other.token_id for other in entry.top if other.token_id != entry.token_id] if entry else []
    if not others:
        raise RequestError("there is no alternative on record: give a token, or ask with logprobs=2 or more")
    return others[0]


def _joined(answer: Completion, kept: list[int], rest: Completion, client: "EngineClient") -> Completion:
    begun = client.detokenize(kept)
    split = begun.endswith(_HALF_A_CHARACTER)  # the other half is in what follows
    text = client.detokenize(kept + rest.token_ids) if split else begun + rest.text
    whole = _whole(answer, kept + rest.token_ids, text)
    whole.request_id, whole.usage, whole.timings = rest.request_id, rest.usage, rest.timings
    new = rest.choices[0]
    whole.choices[0].finish_reason, whole.choices[0].stop_reason = new.finish_reason, new.stop_reason
    return whole


def _whole(answer: Completion, ids: list[int], text: str) -> Completion:
    choices = [Choice(0, text, ids, finish_reason="length")]
    return Completion(answer.model, choices=choices, prompt_token_ids=answer.prompt_token_ids, verbatim=answer.verbatim)
