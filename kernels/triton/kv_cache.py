"""The paged cache of one layer's keys and values on a GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KVCache:
    """keys [num_blocks, num_kv_heads, block_size, D], values the same with their own D.

    A head's tokens of a block lie side by side, so a tile of keys is one contiguous read. A token's slot is
    block * block_size + offset. In an 8-bit cache a stored number times the scale is the key (or value).
    """

    keys: Tensor
    values: Tensor
    key_scale: float = 1.0
    value_scale: float = 1.0

    @property
    def block_size(self) -> int:
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


def allocate_kv(
    num_blocks: int,
    block_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    value_dim: int | None = None,
) -> KVCache:
    """One layer's cache, not written yet. dtype may be float8_e4m3fn. value_dim: where values are narrower (MLA).

    ValueError for a block size that is no multiple of 16: a tile of keys has to lie in whole blocks.
    """
    if block_size % 16:
        raise ValueError(f"kernels.triton needs KV blocks of a multiple of 16 tokens, not {block_size}")
    shape = (num_blocks, num_kv_heads, block_size)
    keys = torch.empty(*shape, head_dim, dtype=dtype, device=device)
    values = torch.empty(*shape, value_dim or head_dim, dtype=dtype, device=device)
    return KVCache(keys, values)
