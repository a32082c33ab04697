"""The paged cache of one layer's keys and values."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KVCache:
    """blocks [2, num_blocks, block_size, num_kv_heads, head_dim]: keys, then values.

    A token's slot is block * block_size + offset.
    """

    blocks: Tensor

    @property
    def block_size(self) -> int:
        return self.blocks.shape[2]

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes

    @property
    def keys(self) -> Tensor:
        """[num_slots, num_kv_heads, head_dim]"""
        return self.blocks[0].flatten(0, 1)

    @property
    def values(self) -> Tensor:
        """[num_slots, num_kv_heads, head_dim]"""
        return self.blocks[1].flatten(0, 1)

    def write(self, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put k and v [T, num_kv_heads, head_dim] at slots [T]; slot -1 is padding and skipped."""
        kept = slots >= 0
        where = slots[kept].long()
        self.keys[where] = k[kept].to(self.blocks.dtype)
        self.values[where] = v[kept].to(self.blocks.dtype)


def allocate_kv(
    num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """One layer's cache. Its memory is not written here, so the system hands out a page when a block is first used."""
    return KVCache(torch.empty(2, num_blocks, block_size, num_kv_heads, head_dim, dtype=dtype, device=device))
