"""What the tokens panel shows of each token, made once a token: an answer of thousands grows ten times a second."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vllm_nb.events import TokenLogprobs
from vllm_nb.inspection.view import EngineView
from vllm_nb.notebook.panels.branches import Branch
from vllm_nb.notebook.panels.drawing import alternatives
from vllm_nb.outputs import TokenLogprob

ALTERNATIVES = 10  # that are shown; a fork asks for as many
_BITS = 1.4426950408889634  # in a nat

Row = list[Any]
TextOf = Callable[[list[int]], str]


def token_row(entry: TokenLogprob, sampling: Mapping[str, float]) -> Row:
    """[text, id, p, rank, entropy in bits, alternatives]; an alternative is [id, text, p, q, cut, exact]."""
    found = alternatives(entry, sampling)[:ALTERNATIVES]
    chosen = next((each for each in found if each.token_id == entry.token_id), None)
    others = [[a.token_id, a.text, _short(a.p), _short(a.q), a.cut, a.exact] for a in found]
    entropy = None if entry.entropy is None else _short(entry.entropy * _BITS)
    p = chosen.p if chosen else 2.0 ** (entry.logprob * _BITS)
    return [entry.text, entry.token_id, _short(p), entry.rank, entropy, others]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


class TokenRows:
    """The rows of one branch after another; those of the branch asked for last are kept, and of its parents."""

    def __init__(self, text_of: TextOf):
        self._text_of = text_of
        self._known: dict[int, list[_Token]] = {}  # of a sequence's own output

    def of(self, view: EngineView, branch: Branch, branches: Iterable[Branch]) -> list[Row]:
        """A row a token of its output; those of tokens that a fork has kept are the parent's. Not to be changed."""
        known, self._known = self._known, {}
        tokens = self._tokens(view, branch, {each.number: each for each in branches}, known)
        return [row for _, row in tokens]

    def _tokens(
        self, view: EngineView, branch: Branch, branches: dict[int, Branch], known: dict[int, list["_Token"]]
    ) -> list["_Token"]:
        own = self._known[branch.number] = known.get(branch.number, [])
        seq = view.sequences[branch.number]
        if len(seq.logprobs) > len(own):
            for place in sorted(seq.logprobs)[len(own) :]:
                entry = _entry(seq.logprobs[place], self._text_of)
                own.append((entry, token_row(entry, seq.sampling)))
        shown = own[: len(seq.logprobs)]  # fewer where the player went back
        if branch.parent is None or branch.parent not in branches:
            return shown
        before = self._tokens(view, branches[branch.parent], branches, known)
        if branch.at >= len(before):
            return [*before, *shown]
        forced = _forced(before[branch.at][0], branch.output(view)[branch.at], self._text_of)
        return [*before[: branch.at], (forced, token_row(forced, seq.sampling)), *shown]


_Token = tuple[TokenLogprob, Row]


def _forced(there: TokenLogprob, token: int, text_of: TextOf) -> TokenLogprob:
    """The token that a fork began with, among the alternatives of the one whose place it took."""
    known = next((other for other in there.top if other.token_id == token), None)
    logprob, rank = (known.logprob, known.rank) if known else (float("-inf"), None)
    return TokenLogprob(token, text_of([token]), logprob, rank, there.top, there.entropy, there.log_mass)


def _entry(event: TokenLogprobs, text_of: TextOf) -> TokenLogprob:
    likeliest = enumerate(zip(event.top_ids, event.top_logprobs, strict=True), 1)
    top = [TokenLogprob(token, text_of([token]), logprob, rank) for rank, (token, logprob) in likeliest]
    shape = event.entropy, event.log_mass
    return TokenLogprob(event.token_id, text_of([event.token_id]), event.logprob, event.rank, top, *shape)
