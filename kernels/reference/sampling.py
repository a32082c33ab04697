"""Tokens from logits. Every row is computed on its own, so a request's token does not depend on its neighbours."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor) -> Tensor:
    """One token for each row of logits [R, V], int32 [R]; the other arguments are [R], uniform from [0, 1).

    Temperature 0 takes the likeliest token (the lowest id of equals). Otherwise logits are divided by the temperature;
    top_k (0 keeps all), top_p and min_p remove tokens in that order, where equals of the last one kept stay; and the
    token taken is the one at which the cumulative probability, in the order of ids, first exceeds uniform * total.
    A row with a NaN, or whose greatest logit is infinite, gives -1.
    """
    top, greedy = logits.max(dim=-1)
    tokens = greedy.int()
    drawn = (temperature > 0).nonzero().squeeze(1)
    if len(drawn):
        tokens[drawn] = _draw(
            logits[drawn] - top[drawn].unsqueeze(1),
            *(argument[drawn].unsqueeze(1) for argument in (temperature, top_k, top_p, min_p, uniform)),
        )
    return tokens.masked_fill(~top.isfinite(), -1)  # the greatest of a row with a NaN is NaN


def _draw(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor) -> Tensor:
    """As `sample`, for rows with a temperature: logits [R, V] have 0 as their greatest value, the others are [R, 1]."""
    # A sum over 262 144 probabilities needs more than float32, which is all that the mps device has.
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    weights = (logits.to(wide) / temperature.to(wide)).exp()  # the likeliest token's is 1
    floor = min_p.to(wide)
    if (top_k > 0).any() or (top_p < 1).any():
        floor = torch.maximum(floor, _top_k_top_p_floor(weights, top_k, top_p.to(wide)))
    weights = torch.where(weights >= floor, weights, 0)

    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    token = torch.searchsorted(cumulative, uniform.to(wide) * total, right=True)
    last = torch.searchsorted(cumulative, total)  # the last token kept, should rounding reach the total
    return torch.minimum(token, last).squeeze(1).int()


def _top_k_top_p_floor(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The least weight that stays, [R, 1], for weights [R, V], top_k and top_p [R, 1]."""
    ordered = weights.sort(dim=-1, descending=True).values
    count = torch.where(top_k > 0, top_k, weights.shape[-1]).clamp(max=weights.shape[-1]).long()
    floor = ordered.gather(1, count - 1)
    ordered = torch.where(ordered >= floor, ordered, 0)

    cumulative = ordered.cumsum(-1)
    before = F.pad(cumulative[:, :-1], (1, 0))  # mass of the likelier tokens
    nucleus = (before < top_p * cumulative[:, -1:]).sum(-1, keepdim=True).clamp(min=1)
    return torch.where(top_p < 1, ordered.gather(1, nucleus - 1), floor)


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Natural log-probabilities under logits [R, V] of token_ids [R], and of the likeliest tokens.

    Returns the token's logprob [R], its rank [R] (int32; 1 is the likeliest, equals share the best), and the ids
    (int32) and logprobs of the num_top likeliest, [R, num_top], in falling order, the lowest id first of equals.
    """
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, token_ids.long().unsqueeze(1))  # [R, 1]
    rank = 1 + (logprobs > chosen).sum(-1)

    # One maximum after the other: a sort of the whole vocabulary costs more, and topk leaves the order of equals open.
    left = logprobs.clamp(min=torch.finfo(logprobs.dtype).min)
    top_ids = torch.empty(len(logits), num_top, dtype=torch.long, device=logits.device)
    for place in range(num_top):
        top_ids[:, place] = left.argmax(-1)
        left.scatter_(1, top_ids[:, place : place + 1], -torch.inf)
    return chosen.squeeze(1), rank.int(), top_ids.int(), logprobs.gather(1, top_ids)


def penalize(
    logits: Tensor,
    rows: Tensor,
    token_ids: Tensor,
    histories: Tensor,
    prompt_lens: Tensor,
    lengths: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    """Repetition penalty (Keskar et al. 2019) on every token of a row's history, frequency and presence penalty on
    those of its output, in place.

    P of the rows of logits [R, V], distinct, have penalties: `rows` int64 [P]. Each one's history is a row of token_ids
    int32 [N, L], by number in `histories` int64 [P]: its first `lengths` int64 [P] tokens, of which `prompt_lens` int64
    [P] are the prompt. The other arguments are [P].
    """
    arguments = (rows, histories, prompt_lens, lengths, repetition, frequency, presence)
    for row, history, start, end, repeated, often, once in zip(*(x.tolist() for x in arguments), strict=True):
        scores, tokens = logits[row], token_ids[history, :end]
        if repeated != 1:
            seen = tokens.unique().long()
            values = scores[seen]
            scores[seen] = torch.where(values > 0, values / repeated, values * repeated)
        if often or once:
            used, counts = tokens[start:].unique(return_counts=True)
            scores[used.long()] -= (counts * often + once).to(scores.dtype)


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """Numbers in [0, 1), float32 [R], by SplitMix64 (Steele et al. 2014) over seed and position, int64 [R] whose bits
    count: the same on every device, and independent of the other rows."""
    seed, position = (x.cpu().numpy().view(np.uint64) for x in (seeds, positions))
    with np.errstate(over="ignore"):
        z = _mix(_mix(seed + _GOLDEN) ^ (position * _GOLDEN))
    drawn = (z >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return torch.from_numpy(drawn).to(seeds.device)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
