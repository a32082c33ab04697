"""Self-attention over the paged cache."""

from typing import Any

from torch import Tensor

from vllm_nb.kernels.backend import Backend, PagedBatch
from vllm_nb.layers.linear import Linear
from vllm_nb.layers.norm import RMSNorm


class Attention:
    """x [T, K] -> [T, K]; writes the keys and values of the batch's tokens to the layer's cache and reads its context.

    qkv: one product for q [T, Hq * D], k and v [T, Hkv * D]. cos_sin [max_len, rotary_dim]: see layers.rotary.
    q_norm, k_norm: RMSNorm on each head before the rotary embedding. sliding_window: tokens a token sees, itself
    included; None is all. softcap: see kernels.reference.attention.
    """

    def __init__(
        self,
        kernels: Backend,
        qkv: Linear,
        output: Linear,
        cos_sin: Tensor,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        q_norm: RMSNorm | None = None,
        k_norm: RMSNorm | None = None,
    ):
        self._kernels = kernels
        self._qkv = qkv
        self._output = output
        self._cos_sin = cos_sin
        self._num_heads = num_heads
        self._num_kv_heads = num_kv_heads
        self._head_dim = head_dim
        self._scale = scale
        self._sliding_window = sliding_window
        self._softcap = softcap
        self._q_norm = q_norm.weight if q_norm else None
        self._k_norm = k_norm.weight if k_norm else None
        self._eps = q_norm.eps if q_norm else 0.0

    def __call__(self, x: Tensor, batch: PagedBatch, kv: Any) -> Tensor:
        heads = {"num_heads": self._num_heads, "num_kv_heads": self._num_kv_heads, "head_dim": self._head_dim}
        q = self._kernels.rope_and_cache(
            self._qkv(x),
            batch.positions,
            batch.slot_mapping,
            self._cos_sin,
            kv,
            **heads,
            q_norm=self._q_norm,
            k_norm=self._k_norm,
            eps=self._eps,
        )
        attended = self._kernels.attention(
            q, kv, batch, **heads, scale=self._scale, sliding_window=self._sliding_window, softcap=self._softcap
        )
        return self._output(attended)
