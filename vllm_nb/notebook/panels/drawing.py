"""What became of a token's alternatives before one was drawn: temperature, top_k, top_p and min_p, in that order."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_nb.outputs import TokenLogprob


@dataclass(frozen=True)
class Alternative:
    """p: probability under the model. q: with which it was drawn, a lower bound where not `exact`; None: unknown.

    cut: which setting left it out: temperature (0 takes the likeliest), top_k, top_p or min_p; "" when none did.
    """

    token_id: int
    text: str
    rank: int
    p: float
    q: float | None
    cut: str
    exact: bool = True


def alternatives(entry: TokenLogprob, sampling: Mapping[str, float]) -> list[Alternative]:
    """The alternatives on record, the likeliest first. sampling: temperature, top_k, top_p, min_p of the request."""
    likeliest = [(place, other, math.exp(other.logprob)) for place, other in enumerate(entry.top, 1)]
    temperature = sampling.get("temperature", 1.0)
    if temperature == 0:
        return [
            Alternative(t.token_id, t.text, rank, p, float(rank == 1), "" if rank == 1 else "temperature")
            for rank, t, p in likeliest
        ]
    if entry.log_mass is None:  # penalties or logit_bias: the filters saw other logits than these
        return [Alternative(t.token_id, t.text, rank, p, None, "") for rank, t, p in likeliest]
    shares = [math.exp(t.logprob / temperature - entry.log_mass) for _, t, _ in likeliest]
    cuts = [_cut(rank, shares, sampling) for rank, _, _ in likeliest]
    kept, exact = _kept(shares, cuts, sampling)
    return [
        Alternative(t.token_id, t.text, rank, p, 0.0 if cut else share / kept, cut, exact or bool(cut))
        for (rank, t, p), share, cut in zip(likeliest, shares, cuts, strict=True)
    ]


def _cut(rank: int, shares: list[float], sampling: Mapping[str, float]) -> str:
    """The first filter that leaves the token out. shares: after temperature and top_k."""
    if 0 < sampling.get("top_k", 0) < rank:
        return "top_k"
    if sampling.get("top_p", 1.0) < 1 and sum(shares[: rank - 1]) >= sampling["top_p"]:
        return "top_p"
    return "min_p" if shares[rank - 1] < sampling.get("min_p", 0.0) * shares[0] else ""


def _kept(shares: list[float], cuts: list[str], sampling: Mapping[str, float]) -> tuple[float, bool]:
    """The mass that all filters leave, and whether that is known: not when more may be left than is on record."""
    if sampling.get("top_p", 1.0) >= 1 and not sampling.get("min_p", 0.0):
        return 1.0, True
    on_record = sum(share for share, cut in zip(shares, cuts, strict=True) if not cut)
    if not cuts or cuts[-1]:
        return on_record or 1.0, True
    return 1.0, sum(shares) > 1 - 1e-6
