"""Sizes of tiles, by shape and by what the GPU is: tables instead of tuning while requests wait."""

import functools
import math
from dataclasses import dataclass

import torch
import triton

MAX_SPLITS = 64
MIN_TOKENS_OF_SPLIT = 256  # a shorter part costs more in merging than it gains


def padded(size: int) -> int:
    """The power of two that a tile of `size` takes; 16 at least, which is what tensor cores multiply."""
    return max(16, triton.next_power_of_2(size))


@dataclass(frozen=True)
class Gpu:
    """processors: streaming multiprocessors; capability: 90 for sm_90."""

    processors: int
    capability: int


assumed = Gpu(1, 90)  # where there is none: kernels are interpreted, or compiled for a GPU that is not there


def gpu_of(device: torch.device) -> Gpu:
    return _gpu(device) if device.type == "cuda" else assumed


@functools.cache
def _gpu(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    return Gpu(properties.multi_processor_count, 10 * properties.major + properties.minor)


@dataclass(frozen=True)
class AttentionTiles:
    """block_m: rows, query tokens times the query heads of one key head, padded; block_q: query tokens; tile: keys."""

    block_m: int
    block_q: int
    tile: int
    warps: int
    stages: int


@functools.cache
def attention_tiles(head_dim: int, item_size: int, group: int, decoding: bool, gpu: Gpu) -> AttentionTiles:
    """Tiles of the attention kernel. item_size: bytes of a cached number."""
    if decoding:
        block_m = max(16, triton.next_power_of_2(group))
        # Enough bytes in flight for one program to keep its share of the memory busy: about 32 KB of keys and values.
        tile = 32 if head_dim * item_size > 256 else 64
        return AttentionTiles(block_m, 1, tile, 4, 3)
    block_m = max(triton.next_power_of_2(group), 128 if head_dim <= 128 and item_size <= 2 else 32)
    # Before Hopper the operands of a product lie in registers, so wide heads leave room for half a tile.
    tile = 64 if item_size <= 2 and (head_dim <= 64 or gpu.capability >= 90) else 32
    warps = 4 if head_dim > 192 and gpu.capability < 90 else 8
    return AttentionTiles(block_m, block_m // group, tile, warps, 3 if head_dim <= 128 else 2)


@functools.cache
def num_splits(programs: int, max_seq_len: int, tile: int, gpu: Gpu) -> int:
    """Parts to cut decoding contexts into, so that `programs` of them give each processor about the same: two or more,
    and few processors idle at the end. The count follows from sizes that a captured graph fixes, never from lengths on
    the device."""
    most = max(1, min(MAX_SPLITS, max_seq_len // max(MIN_TOKENS_OF_SPLIT, tile)))

    def busy(splits: int) -> float:
        """The part of the processors' time that is used, were all programs alike; ones that are alone wait for
        memory."""
        each = programs * splits / gpu.processors
        return each / max(2, math.ceil(each))

    enough = (n for n in range(1, most + 1) if busy(n) >= 0.95)
    return next(enough, max(range(1, most + 1), key=busy))


@dataclass(frozen=True)
class ProductTiles:
    """block_m rows of x, block_n of the weight, width: bytes (dense: values) of a row of the weight at a time."""

    block_m: int
    block_n: int
    width: int
    splits: int
    warps: int
    stages: int = 3


@functools.cache
def gemv_tiles(rows: int, row_bytes: int, gpu: Gpu) -> ProductTiles:
    """A program reads block_n rows of the weight, 4096 bytes (or values) at a time: all threads side by side in each
    row that is wide enough. More programs share a row where there are few rows."""
    width = min(1024, max(32, triton.next_power_of_2(row_bytes)))
    block_n = 4096 // width
    programs = triton.cdiv(rows, block_n)
    splits = max(1, min(4 * gpu.processors // programs, row_bytes // (2 * width)))
    return ProductTiles(1, block_n, width, splits, 4)


@functools.cache
def gemm_tiles(count: int, rows: int, row_bytes: int, low: int, gpu: Gpu) -> ProductTiles:
    """Rows of x in powers of two up to 128, so that few kernels are compiled; split over K while there is little to
    do."""
    block_m = min(128, max(16, triton.next_power_of_2(count)))
    block_n = 64
    width = 32 if low in (0, 4, 8) else 16
    programs = triton.cdiv(count, block_m) * triton.cdiv(rows, block_n)
    splits = max(1, min(gpu.processors // programs, row_bytes // (4 * width)))
    return ProductTiles(block_m, block_n, width, splits, 4 if block_m <= 64 else 8)
