"""A mixture of experts as grouped products: tokens sorted by expert, every expert's share one run of tiles.

Sorting pads each expert's tokens to whole tiles, so a tile has one expert and the host need not know how many tokens
any expert got: the grid is an upper bound, and a tile past the end does nothing. Bytes: the weights of the experts that
were chosen, once for each of their tiles. Grouping: as in MegaBlocks (Gale et al. 2022).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_nb.kernels.triton.activation import silu_mul


@dataclass(frozen=True)
class Routing:
    """rows int32 [padded]: which of the T * top_k (token, choice) pairs, in the order of experts; T * top_k: padding.
    experts int32 [padded / block]: of each tile; the number of experts: a tile past the end."""

    rows: Tensor
    experts: Tensor
    block: int


def route(expert_ids: Tensor, num_experts: int, block: int) -> Routing:
    """expert_ids [T, top_k] -> the pairs sorted by expert, each expert's padded to a multiple of `block`. No host
    sync."""
    flat = expert_ids.flatten().long()
    pairs = flat.numel()
    order = flat.argsort(stable=True)
    counts = torch.zeros(num_experts, dtype=torch.long, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))
    padded = (counts + block - 1) // block * block
    ends = padded.cumsum(0)
    by_expert = flat[order]
    rank = torch.arange(pairs, device=flat.device) - (counts.cumsum(0) - counts)[by_expert]
    room = triton.cdiv(pairs + min(num_experts, pairs) * (block - 1), block) * block
    rows = torch.full((room,), pairs, dtype=torch.int32, device=flat.device)
    rows[(ends - padded)[by_expert] + rank] = order.int()
    starts = torch.arange(0, room, block, device=flat.device)
    return Routing(rows, torch.searchsorted(ends, starts, right=True).int(), block)


@triton.jit(do_not_specialize=["pairs"])
def grouped_kernel(
    out,  # [T * top_k, N]
    x,  # [T, K], or [T * top_k, K] with TOP_K 1
    weights,  # [E, N, K]
    rows,  # [padded]
    experts,  # [padded / BLOCK_M]
    factors,  # with SCALED: [T * top_k]
    pairs,  # T * top_k
    EXPERTS: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    TOP_K: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (padded / BLOCK_M, N / BLOCK_N)."""
    expert = tl.load(experts + tl.program_id(0)).to(tl.int64)
    if expert >= EXPERTS:
        return
    row = tl.load(rows + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    real = row < pairs
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = start + k < K
        inputs = tl.load(
            x + (row // TOP_K)[:, None] * K + (start + k)[None, :], mask=real[:, None] & inside[None, :], other=0.0
        )
        w = tl.load(
            weights + (expert * N + n)[None, :] * K + (start + k)[:, None],
            mask=(n < N)[None, :] & inside[:, None],
            other=0.0,
        )
        acc += tl.dot(inputs, w.to(inputs.dtype), input_precision="ieee")
    if SCALED:
        acc *= tl.load(factors + row, mask=real, other=0.0).to(tl.float32)[:, None]
    tl.store(out + row[:, None] * N + n[None, :], acc.to(out.dtype.element_ty), mask=real[:, None] & (n < N)[None, :])


def grouped_linear(
    x: Tensor, weights: Tensor, routing: Routing, *, pairs: int, top_k: int, factors: Tensor | None = None
) -> Tensor:
    """Each (token, choice) pair's row of x times its expert's weights [E, N, K]: [pairs, N]. top_k: pairs that share a
    row of x. factors [pairs]: multiply the rows."""
    experts, size, inputs = weights.shape
    out = torch.empty(pairs, size, dtype=x.dtype, device=x.device)
    grouped_kernel[(len(routing.experts), triton.cdiv(size, 64))](
        out,
        x,
        weights,
        routing.rows,
        routing.experts,
        x if factors is None else factors,
        pairs,
        EXPERTS=experts,
        N=size,
        K=inputs,
        TOP_K=top_k,
        SCALED=factors is not None,
        BLOCK_M=routing.block,
        BLOCK_N=64,
        BLOCK_K=64,
    )
    return out


def moe(x: Tensor, gate_up: Tensor, down: Tensor, expert_ids: Tensor, factors: Tensor) -> Tensor:
    """x [T, K] through the experts chosen for each token: gate_up [E, 2I, K], down [E, K, I], expert_ids and factors
    [T, top_k]. Returns [T, K], the sum of the choices' outputs times their factors."""
    tokens, top_k = expert_ids.shape
    block = 16 if tokens * top_k <= 16 * len(gate_up) else 64  # mostly padding would be computed otherwise
    routing = route(expert_ids, len(gate_up), block)
    hidden = silu_mul(grouped_linear(x, gate_up, routing, pairs=tokens * top_k, top_k=top_k))
    out = grouped_linear(hidden, down, routing, pairs=tokens * top_k, top_k=1, factors=factors.flatten())
    return out.view(tokens, top_k, -1).sum(1)
