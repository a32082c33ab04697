"""What every backend offers: a module with these functions is a backend. `reference` says what each function does."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from vllm_nb.kernels.quant import RawTensor


class Weight(Protocol):
    """A packed weight of N output rows and K columns; its layout is the backend's own."""

    @property
    def nbytes(self) -> int: ...


class PagedBatch(Protocol):
    """A step's input: T tokens of S sequences, of which R positions give logits. All tensors are int32."""

    token_ids: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    slot_mapping: torch.Tensor  # [T] where each token's key and value go; -1: padding
    query_start_loc: torch.Tensor  # [S + 1] sequence s has tokens query_start_loc[s]:query_start_loc[s + 1]
    seq_lens: torch.Tensor  # [S] tokens of context, those of this step included
    block_tables: torch.Tensor  # [S, max_blocks]
    logits_indices: torch.Tensor  # [R] positions in T
    max_query_len: int
    max_seq_len: int


class Backend(Protocol):
    """T tokens, R logits rows, S sequences, D the head dimension. A parameter after the star is passed by name."""

    def pack(self, parts: Sequence[RawTensor], *, dtype: torch.dtype, device: torch.device) -> Any: ...

    def linear(self, x: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> torch.Tensor: ...

    def embedding(self, token_ids: torch.Tensor, weight: Any, scale: float = 1.0) -> torch.Tensor: ...

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor: ...

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def rope_and_cache(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        cos_sin: torch.Tensor,
        kv: Any,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        q_norm: torch.Tensor | None = None,
        k_norm: torch.Tensor | None = None,
        eps: float = 0.0,
    ) -> torch.Tensor: ...

    def attention(
        self,
        q: torch.Tensor,
        kv: Any,
        batch: PagedBatch,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> torch.Tensor: ...

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor: ...

    def gelu_tanh_mul(self, gate_up: torch.Tensor) -> torch.Tensor: ...

    def gather_rows(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor: ...

    def softcap(self, x: torch.Tensor, cap: float) -> torch.Tensor: ...

    def allocate_kv(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Any: ...

    def sample(
        self,
        logits: torch.Tensor,
        temperature: torch.Tensor,
        top_k: torch.Tensor,
        top_p: torch.Tensor,
        min_p: torch.Tensor,
        uniform: torch.Tensor,
    ) -> torch.Tensor: ...

    def token_logprobs(
        self, logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]: ...

    def penalize(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        token_ids: torch.Tensor,
        histories: torch.Tensor,
        prompt_lens: torch.Tensor,
        lengths: torch.Tensor,
        repetition: torch.Tensor,
        frequency: torch.Tensor,
        presence: torch.Tensor,
    ) -> None: ...

    def uniforms(self, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor: ...
