"""Products with packed weights: GEMV for a few rows, GEMM for more, cuBLAS where the weight is dense.

Decoding is bound by the bytes of the weights (`gemv_kernel`: N * K * bits / 8 and the scales, each once; split over K
where a matrix has too few rows to occupy the GPU). Prefill is bound by operations: `gemm_kernel` dequantises a tile
into registers and multiplies on tensor cores.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from vllm_nb.kernels.planes import CODEBOOK
from vllm_nb.kernels.triton.dequantize import input_index, numbers, weight_tile
from vllm_nb.kernels.triton.packing import Planes, Scaled, Segment, Weight
from vllm_nb.kernels.triton.tiles import gemm_tiles, gemv_tiles, gpu_of

GEMV_ROWS = 4  # more rows of x are cheaper on tensor cores
RUN = 8  # bytes of a weight that one thread reads at once: 16 bytes of x (and of a bfloat16 weight) go with them


@triton.jit(do_not_specialize=["T", "N"])
def gemv_kernel(
    out,  # [splits, T, N]: out's type with one split, else float32
    x,  # [T, K]
    low,
    high,
    scales,
    minima,
    codebook,
    row_scales,  # with ROW_SCALES: float32 [N]
    T,
    N,
    K: tl.constexpr,
    ROWS: tl.constexpr,  # T rounded up
    ROW_SCALES: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_MIN: tl.constexpr,
    ZERO: tl.constexpr,
    LOOKUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
    RUN: tl.constexpr,
):
    """Grid (N / BLOCK_N, splits). A thread reads a run of RUN bytes (or values) of each row, which have a scale in
    common, and sums up for itself: threads meet once, at the end. All is read as [rows * RUNS, RUN]: of more dimensions
    Triton would give the threads out by its own taste, another one for weights than for x.
    """
    FIELDS: tl.constexpr = 8 // LOW if LOW else 1
    ROW: tl.constexpr = K * LOW // 8 if LOW else K
    RUNS: tl.constexpr = WIDTH // RUN
    r = tl.arange(0, BLOCK_N * RUNS)
    n = tl.program_id(0) * BLOCK_N + r // RUNS
    row = n.to(tl.int64)
    i = tl.arange(0, ROWS * RUNS)
    t = i // RUNS
    byte = tl.arange(0, RUN)[None, :]
    sums = tl.zeros([ROWS, BLOCK_N, RUNS], tl.float32)
    tiles = tl.cdiv(ROW, WIDTH)
    share = tl.cdiv(tiles, tl.num_programs(1))
    first = tl.program_id(1) * share
    for tile in range(first, tl.minimum(first + share, tiles)):
        j = tile * WIDTH + r % RUNS * RUN
        inside = (n < N) & (j < ROW)
        bytes = j[:, None] + byte
        for field in tl.static_range(FIELDS):
            w = numbers(
                low, high, codebook, row[:, None], bytes, inside[:, None] & (bytes < ROW), field,
                K, LOW, HIGH, ZERO, LOOKUP,
            )  # fmt: skip
            k = input_index(tile * WIDTH + i % RUNS * RUN, field, LOW)[:, None] + byte
            inputs = tl.load(x + t[:, None] * K + k, mask=(t < T)[:, None] & (k < K), other=0.0).to(tl.float32)
            inputs = tl.reshape(inputs, [ROWS, 1, RUNS, RUN])
            part = tl.sum(inputs * tl.reshape(w, [1, BLOCK_N, RUNS, RUN]), 3)
            if LOW:
                group = row * (K // GROUP) + input_index(j, field, LOW) // GROUP
                scale = tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)
                part *= tl.reshape(scale, [1, BLOCK_N, RUNS])
                if HAS_MIN:
                    least = tl.load(minima + group, mask=inside, other=0.0).to(tl.float32)
                    part += tl.sum(inputs, 3) * tl.reshape(least, [1, BLOCK_N, RUNS])
            sums += part
    acc = tl.sum(sums, 2)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if ROW_SCALES:
        acc *= tl.load(row_scales + n, mask=n < N, other=0.0)[None, :]
    t = tl.arange(0, ROWS)[:, None]
    at = (tl.program_id(1).to(tl.int64) * T + t) * N + n[None, :]
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=(t < T) & (n < N)[None, :])


@triton.jit(do_not_specialize=["T", "N"])
def gemm_kernel(
    out,  # [splits, T, N]
    x,  # [T, K]
    low,
    high,
    scales,
    minima,
    codebook,
    row_scales,
    T,
    N,
    K: tl.constexpr,
    ROW_SCALES: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_MIN: tl.constexpr,
    ZERO: tl.constexpr,
    LOOKUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Grid (T / BLOCK_M, N / BLOCK_N, splits): neighbours share a tile of weights, which the L2 cache then keeps."""
    FIELDS: tl.constexpr = 8 // LOW if LOW else 1
    ROW: tl.constexpr = K * LOW // 8 if LOW else K
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    tiles = tl.cdiv(ROW, WIDTH)
    share = tl.cdiv(tiles, tl.num_programs(2))
    first = tl.program_id(2) * share
    for tile in range(first, tl.minimum(first + share, tiles)):
        for field in tl.static_range(FIELDS):
            w = weight_tile(
                low, high, scales, minima, codebook, n, tile * WIDTH, field, N,
                K, WIDTH, LOW, HIGH, GROUP, HAS_MIN, ZERO, LOOKUP,
            )  # fmt: skip
            k = input_index(tile * WIDTH + tl.arange(0, WIDTH), field, LOW)
            inside = (m < T)[:, None] & (k < K)[None, :]
            inputs = tl.load(x + m.to(tl.int64)[:, None] * K + k[None, :], mask=inside, other=0.0)
            acc += tl.dot(inputs, tl.trans(w.to(inputs.dtype)), input_precision="ieee")
    if ROW_SCALES:
        acc *= tl.load(row_scales + n, mask=n < N, other=0.0)[None, :]
    at = (tl.program_id(2).to(tl.int64) * T + m[:, None]) * N + n[None, :]
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=(m < T)[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=["N"])
def embedding_kernel(
    out,  # [T, K]
    token_ids,  # [T]
    low,
    high,
    scales,
    minima,
    codebook,
    factor,
    N,
    K: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_MIN: tl.constexpr,
    ZERO: tl.constexpr,
    LOOKUP: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A row of a quantised table for each token. Grid (T, row / WIDTH)."""
    FIELDS: tl.constexpr = 8 // LOW
    token = tl.program_id(0).to(tl.int64)
    n = tl.load(token_ids + token) + tl.zeros([1], tl.int32)
    for field in tl.static_range(FIELDS):
        w = weight_tile(
            low, high, scales, minima, codebook, n, tl.program_id(1) * WIDTH, field, N,
            K, WIDTH, LOW, HIGH, GROUP, HAS_MIN, ZERO, LOOKUP,
        )  # fmt: skip
        k = input_index(tl.program_id(1) * WIDTH + tl.arange(0, WIDTH), field, LOW)
        tl.store(out + token * K + k[None, :], (w * factor).to(out.dtype.element_ty), mask=(k < K)[None, :])


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N]: [T, N]."""
    products = [_product(x, segment) for segment in weight.segments]
    out = products[0] if len(products) == 1 else torch.cat(products, -1)
    return out if bias is None else out + bias


def embedding(token_ids: Tensor, weight: Weight, scale: float = 1.0) -> Tensor:
    """Rows of weight [V, K] for token_ids [T], times `scale`: [T, K]."""
    (table,) = weight.segments  # a table is one tensor of one type
    if isinstance(table, Tensor):
        rows = F.embedding(token_ids, table)
        return rows if scale == 1.0 else rows * scale
    assert isinstance(table, Planes)
    count, size = token_ids.shape[0], table.shape[1]
    out = torch.empty(count, size, dtype=weight.dtype, device=token_ids.device)
    width = 256
    pointers, options = _planes(table)
    options.pop("ROW_SCALES")
    grid = (count, triton.cdiv(table.low.shape[1], width))
    embedding_kernel[grid](out, token_ids, *pointers[:5], scale, table.shape[0], K=size, WIDTH=width, **options)
    return out


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    """x [T, K] at indices [R]: [R, K]."""
    return x.index_select(0, indices)


def _product(x: Tensor, segment: Segment) -> Tensor:
    if x.shape[0] <= GEMV_ROWS:
        parts = _gemv(x, segment)
    elif isinstance(segment, Tensor):
        return F.linear(x, segment)
    else:
        parts = _gemm(x, segment)
    return parts[0] if len(parts) == 1 else parts.sum(0).to(x.dtype)  # in a fixed order, unlike atomic additions


def _gemv(x: Tensor, segment: Segment) -> Tensor:
    """[splits, T, N]"""
    count, (rows, size) = x.shape[0], segment.shape
    pointers, options = _planes(segment)
    tiles = gemv_tiles(rows, _row_bytes(size, options), gpu_of(x.device))
    out = _room(x, rows, tiles.splits)
    gemv_kernel[(triton.cdiv(rows, tiles.block_n), tiles.splits)](
        out,
        x,
        *pointers,
        count,
        rows,
        K=size,
        ROWS=triton.next_power_of_2(count),
        BLOCK_N=tiles.block_n,
        WIDTH=tiles.width,
        RUN=RUN,
        **options,
        num_warps=tiles.warps,
    )
    return out


def _gemm(x: Tensor, segment: Segment) -> Tensor:
    """[splits, T, N]"""
    count, (rows, size) = x.shape[0], segment.shape
    pointers, options = _planes(segment)
    tiles = gemm_tiles(count, rows, _row_bytes(size, options), options["LOW"], gpu_of(x.device))
    out = _room(x, rows, tiles.splits)
    gemm_kernel[(triton.cdiv(count, tiles.block_m), triton.cdiv(rows, tiles.block_n), tiles.splits)](
        out,
        x,
        *pointers,
        count,
        rows,
        K=size,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        WIDTH=tiles.width,
        **options,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out


def _row_bytes(size: int, options: dict[str, Any]) -> int:
    """Of the low plane; values, where there are no planes."""
    return size * options["LOW"] // 8 if options["LOW"] else size


def _room(x: Tensor, rows: int, splits: int) -> Tensor:
    dtype = x.dtype if splits == 1 else torch.float32
    return torch.empty(splits, x.shape[0], rows, dtype=dtype, device=x.device)


def _planes(segment: Segment) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """The kernels' pointers to a weight and what they are compiled for; a pointer that is not used is any tensor."""
    if isinstance(segment, Planes):
        f, low = segment.format, segment.low
        high = low if segment.high is None else segment.high
        minima = segment.scales if segment.minima is None else segment.minima
        pointers = (low, high, segment.scales, minima, _codebook(low.device), segment.scales)
        options = {"LOW": f.low, "HIGH": f.high, "GROUP": f.group, "HAS_MIN": f.has_min, "ZERO": f.zero}
        return pointers, options | {"LOOKUP": f.codebook, "ROW_SCALES": False}
    values = segment.values if isinstance(segment, Scaled) else segment
    row_scales = segment.scales if isinstance(segment, Scaled) else values
    options = {"LOW": 0, "HIGH": 0, "GROUP": 1, "HAS_MIN": False, "ZERO": 0, "LOOKUP": False}
    return (values,) * 5 + (row_scales,), options | {"ROW_SCALES": isinstance(segment, Scaled)}


@functools.cache
def _codebook(device: torch.device) -> Tensor:
    return torch.tensor(CODEBOOK, dtype=torch.float32, device=device)
