"""The KV cache of one layer, laid out so that keys and values are read in whole vectors.

A sub-block is 16 neighbouring tokens of one KV head. Keys lie dimension by dimension (bfloat16: pair by pair) with the
16 tokens in the lanes, so that q times 16 keys needs no sum across lanes; values lie 16 dimensions by 16 dimensions,
token by token (bfloat16: pair by pair), with the dimensions in the lanes.

    8 bits    keys   [heads, blocks, sub-blocks] of: uint8 [dim / 32, 8, 16, 4], float16 scales [dim / 32, 16]
              values [heads, blocks, sub-blocks] of: int8 [dim / 16, 4, 16, 4], float16 scales [16]
    bfloat16  keys [heads, blocks, sub-blocks, dim / 2, 16, 2]   values [heads, blocks, sub-blocks, dim / 16, 8, 16, 2]
    float32   keys [heads, blocks, sub-blocks, dim, 16]          values [heads, blocks, sub-blocks, dim / 16, 16, 16]

`dim` is the head size, rounded up to a multiple of 16 (keys in 8 bits: of 32). In 8 bits, keys have a scale for each
token and 32 dimensions, since some models have dimensions far larger than the others, and values one for each token.
Heads come first because a thread reads one at a time, and the processor fetches ahead what is read in a row.
A number is byte * scale, of keys (byte - 128) * scale. Both are padded to whole cache lines.
"""

from dataclasses import dataclass

import torch

from vllm_nb.kernels.cpu import layout
from vllm_nb.kernels.cpu.formats import TILE
from vllm_nb.kernels.cpu.memory import large_empty, make_resident


@dataclass(frozen=True)
class KVCache:
    """One layer's keys and values; block_size in tokens."""

    keys: torch.Tensor
    values: torch.Tensor
    num_blocks: int
    block_size: int
    num_kv_heads: int
    head_dim: int

    @property
    def kind(self) -> str:
        return {torch.int8: "int8", torch.bfloat16: "bf16"}.get(self.keys.dtype, "f32")

    @property
    def sub_blocks(self) -> int:
        """Of one head."""
        return self.num_blocks * self.block_size // TILE

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
    """Room for num_blocks * block_size tokens. Memory that was never written is not resident, save for each head's
    first block: a thread of its own gets that ready, because huge pages take long where they must be cleared first.

    dtype: int8 for 8 bits, bfloat16 or float32 (float16 models keep bfloat16: same size, and their keys can exceed
    float16's range). ValueError for any other, and for a block size that is no multiple of 16.
    """
    if block_size % TILE:
        raise ValueError(f"kernels.cpu needs KV blocks of a multiple of {TILE} tokens, not {block_size}")
    if torch.device(device).type != "cpu":
        raise ValueError(f"kernels.cpu keeps its KV cache on the CPU, not on {device}")
    if dtype not in (torch.int8, torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"kernels.cpu keeps keys and values in int8, bfloat16 or float32, not in {dtype}")
    width, heads = -(-head_dim // TILE) * TILE, num_blocks * block_size // TILE * num_kv_heads
    if dtype == torch.int8:
        sizes = heads * layout.int8_key_bytes(head_dim), heads * layout.int8_value_bytes(width)
    else:
        sizes = (heads * TILE * width,) * 2
        dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
    memory = [large_empty(size * dtype.itemsize) for size in sizes]
    for part in memory:
        make_resident(part, range(0, len(part), max(1, len(part) // num_kv_heads)))
    keys, values = (torch.from_numpy(part).view(dtype) for part in memory)
    return KVCache(keys, values, num_blocks, block_size, num_kv_heads, head_dim)
