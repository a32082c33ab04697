"""What happens to logits before a token is drawn: penalties for tokens that were there, and each row's random number.

Counting: grid (R, L / BLOCK), an addition for each token of a row's history. Applying: grid (R, V / BLOCK), bytes:
counts and logits once. Rows without penalties end at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
_PROMPT = 1 << 20  # added to a token's count for each time it stands in the prompt; outputs are shorter than that


@triton.jit(do_not_specialize=["stride"])
def count_kernel(
    counts,  # int32 [R, V]
    token_ids,  # [R, stride]
    prompt_lens,  # [R]
    lengths,  # [R], the outputs included
    stride,
    V: tl.constexpr,
    PROMPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < tl.load(lengths + row)
    token = tl.load(token_ids + row * stride + i, mask=inside, other=0)
    amount = tl.where(i < tl.load(prompt_lens + row), PROMPT, 1)
    tl.atomic_add(counts + row * V + token, amount, mask=inside)


@triton.jit
def penalize_kernel(
    logits,  # float32 [R, V]
    counts,  # int32 [R, V]
    repetitions,  # [R]
    frequencies,
    presences,
    V: tl.constexpr,
    PROMPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    repetition = tl.load(repetitions + row)
    frequency = tl.load(frequencies + row)
    presence = tl.load(presences + row)
    if (repetition == 1) & (frequency == 0) & (presence == 0):
        return
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    count = tl.load(counts + row * V + i, mask=i < V, other=0)
    x = tl.load(logits + row * V + i, mask=i < V, other=0.0)
    x = tl.where(count > 0, tl.where(x > 0, x / repetition, x * repetition), x)
    used = count % PROMPT
    x -= used.to(tl.float32) * frequency + tl.where(used > 0, presence, 0.0)
    tl.store(logits + row * V + i, x, mask=i < V)


@triton.jit
def _mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit(do_not_specialize=["count"])
def uniforms_kernel(out, seeds, positions, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    seed = tl.load(seeds + i, mask=i < count, other=0).to(tl.uint64, bitcast=True)
    position = tl.load(positions + i, mask=i < count, other=0).to(tl.uint64)
    golden = tl.full([1], 0x9E3779B97F4A7C15, tl.uint64)
    z = _mix(_mix(seed + golden) ^ (position * golden))
    tl.store(out + i, (z >> 40).to(tl.float32) * 5.9604644775390625e-08, mask=i < count)  # 2**-24


def penalize(
    logits: Tensor,
    token_ids: Tensor,
    prompt_lens: Tensor,
    lengths: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    """Repetition penalty (Keskar et al. 2019) on every token of a row's history, frequency and presence penalty on
    those of its output, in place. logits float32 [R, V]; token_ids int32 [R, L], of which the first `lengths` [R] count
    and `prompt_lens` [R] are the prompt; the other arguments float32 [R]."""
    rows, vocab = logits.shape
    counts = torch.zeros(rows, vocab, dtype=torch.int32, device=logits.device)
    count_kernel[(rows, triton.cdiv(token_ids.shape[1], BLOCK))](
        counts, token_ids, prompt_lens, lengths, token_ids.stride(0), V=vocab, PROMPT=_PROMPT, BLOCK=BLOCK
    )
    penalize_kernel[(rows, triton.cdiv(vocab, BLOCK))](
        logits, counts, repetition, frequency, presence, V=vocab, PROMPT=_PROMPT, BLOCK=BLOCK
    )


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """Numbers in [0, 1), float32 [R], by SplitMix64 (Steele et al. 2014) over seed (the bits of an int64) and position
    [R]: the same on every device, and independent of the other rows."""
    out = torch.empty(seeds.shape[0], dtype=torch.float32, device=seeds.device)
    uniforms_kernel[(triton.cdiv(len(out), 128),)](out, seeds, positions, len(out), BLOCK=128)
    return out
