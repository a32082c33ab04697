"""Tokens from logits without a sort. A program owns a row and reads it a few times; V is up to some hundred thousand.

Where a threshold is needed (the k-th largest logit, the nucleus of top_p), it is found digit by digit: floats in the
order of an integer key, two bits a pass, 16 passes for 32. A sum over the likelier tokens decides each digit, so equals
are kept or dropped together, and the result is exact. (The idea of dual pivots for top-k and top-p
without sorting: Qrita, arXiv 2602.01518; here a plain radix search.)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8192  # logits a program reads at once: 32 KB on their way, since a row alone has a processor alone
WARPS = 16


@triton.jit
def _key(x):
    """float32 -> uint32 in the same order."""
    bits = tl.where(x == 0, 0.0, x).to(tl.uint32, bitcast=True)  # -0.0 equals 0.0
    return tl.where(bits >> 31 != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _threshold(logits, top, inverse, least, wanted, V: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The largest key such that the tokens at or above it number `wanted` or more, or (not COUNT) have the weight
    `wanted` or more. A token's weight is exp((logit - top) * inverse), and 0 below `least`."""
    found = tl.zeros([], tl.uint32)
    unit = tl.full([], 1 << 30, tl.uint32)
    # Four neighbours are one thread's, which adds them up: that takes fewer registers.
    offsets = tl.arange(0, BLOCK // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    for _ in range(16):
        first = tl.zeros([BLOCK // 4], tl.float32)
        second = tl.zeros([BLOCK // 4], tl.float32)
        third = tl.zeros([BLOCK // 4], tl.float32)
        for start in range(0, V, BLOCK):
            i = start + offsets
            x = tl.load(logits + i, mask=i < V, other=float("-inf"))
            key = _key(x)
            if COUNT:  # decided while compiling
                amount = tl.where(i < V, 1.0, 0.0)
            else:
                amount = tl.where(key >= least, tl.exp((x - top) * inverse), 0.0)
            first += tl.sum(tl.where(key >= found + unit, amount, 0.0), 1)
            second += tl.sum(tl.where(key >= found + 2 * unit, amount, 0.0), 1)
            third += tl.sum(tl.where(key >= found + 3 * unit, amount, 0.0), 1)
        digit = (tl.sum(first, 0) >= wanted).to(tl.uint32)
        digit += (tl.sum(second, 0) >= wanted).to(tl.uint32) + (tl.sum(third, 0) >= wanted).to(tl.uint32)
        found += digit * unit
        unit = unit >> 2
    return found


@triton.jit
def _kept(x, i, top, inverse, least, floor, V: tl.constexpr):
    """Weights of a block of logits, 0 for those removed."""
    weight = tl.exp((x - top) * inverse)
    return tl.where((i < V) & (_key(x) >= least) & (weight >= floor), weight, 0.0)


@triton.jit
def _mass(logits, top, inverse, least, floor, V: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of the weights that are kept. Threads meet once, at the end: here as elsewhere, what they wait for each
    other costs more than reading does."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(logits + i, mask=i < V, other=float("-inf"))
        total += _kept(x, i, top, inverse, least, floor, V)
    return tl.sum(total, 0)


@triton.jit
def sample_kernel(
    tokens,  # int32 [R]
    logits,  # float32 [R, V]
    temperatures,  # [R]
    top_ks,
    top_ps,
    min_ps,
    uniforms,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (R,). Bytes: V * 4 once for a greedy row, three times with a temperature, 16 times more for each of top_k
    and top_p (from the L2 cache)."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_id = tl.zeros([BLOCK], tl.int32)
    broken = tl.zeros([BLOCK], tl.int32)
    for start in range(0, V, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(logits + i, mask=i < V, other=float("-inf"))
        broken |= (x != x).to(tl.int32)
        better = x > best
        best = tl.where(better, x, best)
        best_id = tl.where(better, i, best_id)
    top = tl.max(best, 0)
    greedy = tl.min(tl.where(best == top, best_id, V), 0)
    finite = (top > float("-inf")) & (top < float("inf")) & (tl.max(broken, 0) == 0)
    temperature = tl.load(temperatures + row)
    if (temperature == 0) | (finite == 0):
        tl.store(tokens + row, tl.where(finite, greedy, -1))
        return

    inverse = 1 / temperature
    top_k = tl.load(top_ks + row)
    top_p = tl.load(top_ps + row)
    floor = tl.load(min_ps + row)
    least = tl.zeros([], tl.uint32)
    if (top_k > 0) & (top_k < V):
        least = _threshold(logits, top, inverse, least, top_k.to(tl.float32), V, True, BLOCK)
    if top_p < 1:
        total = _mass(logits, top, inverse, least, 0.0, V, BLOCK)
        least = tl.maximum(least, _threshold(logits, top, inverse, least, top_p * total, V, False, BLOCK))

    wanted = tl.load(uniforms + row) * _mass(logits, top, inverse, least, floor, V, BLOCK)
    before = 0.0
    token = V
    last = 0
    for start in range(0, V, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(logits + i, mask=i < V, other=float("-inf"))
        weight = _kept(x, i, top, inverse, least, floor, V)
        reached = (before + tl.cumsum(weight, 0) > wanted) & (weight > 0)
        token = tl.minimum(token, tl.min(tl.where(reached, i, V), 0))
        last = tl.maximum(last, tl.max(tl.where(weight > 0, i, 0), 0))
        before += tl.sum(weight, 0)
    tl.store(tokens + row, tl.minimum(token, last))  # rounding must not lead past the last token kept


@triton.jit(do_not_specialize=["num_top"])
def token_logprobs_kernel(
    logprobs,  # [R]
    ranks,  # int32 [R]
    top_ids,  # int32 [R, num_top]
    top_logprobs,  # [R, num_top]
    logits,  # float32 [R, V]
    token_ids,  # [R]
    num_top,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (R,). Bytes: V * 4 three times, and once more for each of the num_top."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, V, BLOCK):
        i = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(logits + i, mask=i < V, other=float("-inf")))
    top = tl.max(largest, 0)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.exp(tl.load(logits + i, mask=i < V, other=float("-inf")) - top)
    norm = top + tl.log(tl.sum(total, 0))

    chosen = tl.load(logits + tl.load(token_ids + row))
    likelier = tl.zeros([BLOCK], tl.int32)
    for start in range(0, V, BLOCK):
        i = start + tl.arange(0, BLOCK)
        likelier += (tl.load(logits + i, mask=i < V, other=float("-inf")) > chosen).to(tl.int32)
    tl.store(logprobs + row, chosen - norm)
    tl.store(ranks + row, 1 + tl.sum(likelier, 0))

    # One maximum after the other: the next is the greatest below the last, or its equal with a higher id.
    value = float("inf")
    place = -1
    for n in range(num_top):
        best = tl.full([BLOCK], float("-inf"), tl.float32)
        best_id = tl.full([BLOCK], V, tl.int32)
        for start in range(0, V, BLOCK):
            i = start + tl.arange(0, BLOCK)
            x = tl.load(logits + i, mask=i < V, other=float("-inf"))
            left = (i < V) & ((x < value) | ((x == value) & (i > place)))
            better = left & ((x > best) | ((x == best) & (i < best_id)))
            best = tl.where(better, x, best)
            best_id = tl.where(better, i, best_id)
        value = tl.max(best, 0)
        place = tl.min(tl.where(best == value, best_id, V), 0)
        tl.store(top_ids + row * num_top + n, place)
        tl.store(top_logprobs + row * num_top + n, value - norm)


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor) -> Tensor:
    """As `reference.sample`: one token for each row of logits [R, V], int32 [R]; the other arguments are [R]."""
    tokens = torch.empty(logits.shape[0], dtype=torch.int32, device=logits.device)
    sample_kernel[(logits.shape[0],)](
        tokens,
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        uniform,
        V=logits.shape[1],
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return tokens


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference.token_logprobs`: the token's logprob [R] and rank [R], ids and logprobs of the likeliest [R,
    num_top]."""
    rows, vocab = logits.shape
    device = logits.device
    logprobs = torch.empty(rows, dtype=torch.float32, device=device)
    ranks = torch.empty(rows, dtype=torch.int32, device=device)
    top_ids = torch.empty(rows, num_top, dtype=torch.int32, device=device)
    top_logprobs = torch.empty(rows, num_top, dtype=torch.float32, device=device)
    token_logprobs_kernel[(rows,)](
        logprobs, ranks, top_ids, top_logprobs, logits, token_ids, num_top, V=vocab, BLOCK=BLOCK, num_warps=WARPS
    )
    return logprobs, ranks, top_ids, top_logprobs
