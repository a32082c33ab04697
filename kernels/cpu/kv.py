"""The KV cache of one layer, laid out so that keys and values are read in whole vectors.

A sub-block is 16 neighbouring tokens of one KV head. Keys lie dimension by dimension (bfloat16: pair by pair) with the
16 tokens in the lanes, so that q times 16 keys needs no sum across lanes; values lie 16 dimensions by 16 dimensions,
token by token (bfloat16: pair by pair), with the dimensions in the lanes.

    bfloat16  keys [blocks, sub-blocks, heads, dim / 2, 16, 2]   values [blocks, sub-blocks, heads, dim / 16, 8, 16, 2]
    float32   keys [blocks, sub-blocks, heads, dim, 16]          values [blocks, sub-blocks, heads, dim / 16, 16, 16]

`dim` is the head size, rounded up to a multiple of 16.
"""

from dataclasses import dataclass

import torch

from vllm_nb.kernels.cpu.formats import TILE


@dataclass(frozen=True)
class KVCache:
    """One layer's keys and values; block_size in tokens."""

    keys: torch.Tensor
    values: torch.Tensor
    block_size: int
    num_kv_heads: int
    head_dim: int

    @property
    def kind(self) -> str:
        return "bf16" if self.keys.dtype == torch.bfloat16 else "f32"

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


def allocate_kv(
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> KVCache:
    """Room for num_blocks * block_size tokens. Memory that was never written is not resident.

    ValueError for a block size that is no multiple of 16, or a dtype other than bfloat16 and float32 (float16 models
    keep bfloat16: same size, and their keys can exceed float16's range).
    """
    if block_size % TILE:
        raise ValueError(f"kernels.cpu needs KV blocks of a multiple of {TILE} tokens, not {block_size}")
    if torch.device(device).type != "cpu":
        raise ValueError(f"kernels.cpu keeps its KV cache on the CPU, not on {device}")
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"kernels.cpu keeps keys and values in bfloat16 or float32, not in {dtype}")
    kept = torch.float32 if dtype == torch.float32 else torch.bfloat16
    width = -(-head_dim // TILE) * TILE
    size = num_blocks * block_size * num_kv_heads * width
    return KVCache(torch.empty(size, dtype=kept), torch.empty(size, dtype=kept), block_size, num_kv_heads, head_dim)
