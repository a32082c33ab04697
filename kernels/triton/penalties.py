"""What happens to logits before a token is drawn: penalties for tokens that were there, and each row's random number.

Counting: grid (P, L / BLOCK) for P rows with penalties, an addition for each token of a row's history. Applying: grid
(P, V / BLOCK), bytes: counts three times (cleared, added to, read) and logits twice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
_PROMPT = 1 << 30  # the bit of a token that stands in the prompt; those below count it in the output


@triton.jit(do_not_specialize=["stride"])
def count_kernel(
    counts,  # int32 [P, V]
    token_ids,  # [N, stride]
    histories,  # [P], rows of token_ids
    prompt_lens,  # [P]
    lengths,  # [P], the outputs included
    stride,
    V: tl.constexpr,
    PROMPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < tl.load(lengths + row)
    token = tl.load(token_ids + tl.load(histories + row) * stride + i, mask=inside, other=0)
    prompt = i < tl.load(prompt_lens + row)
    at = counts + row * V + token
    tl.atomic_or(at, PROMPT, mask=inside & prompt)
    tl.atomic_add(at, 1, mask=inside & (prompt == 0))


@triton.jit
def penalize_kernel(
    logits,  # float32 [R, V]
    rows,  # [P], of logits
    counts,  # int32 [P, V]
    repetitions,  # [P]
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
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    count = tl.load(counts + row * V + i, mask=i < V, other=0)
    at = logits + tl.load(rows + row) * V + i
    x = tl.load(at, mask=i < V, other=0.0)
    x = tl.where(count > 0, tl.where(x > 0, x / repetition, x * repetition), x)
    used = count % PROMPT
    x -= used.to(tl.float32) * frequency + tl.where(used > 0, presence, 0.0)
    tl.store(at, x, mask=i < V)


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
    rows: Tensor,
    token_ids: Tensor,
    histories: Tensor,
    prompt_lens: Tensor,
    lengths: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    """As `reference.penalize`, for float32 logits: in place."""
    count, vocab = rows.shape[0], logits.shape[1]
    counts = torch.zeros(count, vocab, dtype=torch.int32, device=logits.device)
    count_kernel[(count, triton.cdiv(token_ids.shape[1], BLOCK))](
        counts, token_ids, histories, prompt_lens, lengths, token_ids.stride(0), V=vocab, PROMPT=_PROMPT, BLOCK=BLOCK
    )
    penalize_kernel[(count, triton.cdiv(vocab, BLOCK))](
        logits, rows, counts, repetition, frequency, presence, V=vocab, PROMPT=_PROMPT, BLOCK=BLOCK
    )


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """As `reference.uniforms`, bit by bit."""
    out = torch.empty(seeds.shape[0], dtype=torch.float32, device=seeds.device)
    uniforms_kernel[(triton.cdiv(len(out), 128),)](out, seeds, positions, len(out), BLOCK=128)
    return out
