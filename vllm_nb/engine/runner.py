"""Runs the model: from a plan to logits and hidden states. One runner for every backend."""

from typing import Any

import numpy as np
import torch

from vllm_nb import progress
from vllm_nb.engine.batch import Batch, BatchBuffers, Rows
from vllm_nb.engine.capacity import Capacity
from vllm_nb.engine.graphs import CudaCapture, DecodeGraphs
from vllm_nb.engine.scheduler import Plan
from vllm_nb.engine.warm_up import warm_up_batches, warm_up_sampling
from vllm_nb.models.config import ModelConfig


def allocate_kv(
    kernels: Any, config: ModelConfig, capacity: Capacity, dtype: torch.dtype, device: torch.device
) -> list[Any]:
    """The KV cache, layer by layer."""
    c = capacity
    return [
        kernels.allocate_kv(c.num_blocks, c.block_size, config.num_kv_heads, config.head_dim, dtype, device)
        for _ in range(config.num_layers)
    ]


class Runner:
    """Model, KV cache (see allocate_kv), rows and step buffers. Backends that can capture the forward pass replay it as
    one call."""

    def __init__(self, model: Any, kernels: Any, capacity: Capacity, kv: list[Any], *, device: torch.device):
        c = capacity
        self.model, self.kernels, self.capacity, self.kv = model, kernels, capacity, kv
        self.rows = Rows(c.max_num_seqs, c.max_model_len, c.block_size, device)
        max_blocks = self.rows.block_tables.shape[1]
        self.buffers = BatchBuffers(c.max_num_batched_tokens, c.max_num_seqs, c.max_logits, max_blocks)
        self.graph = self._capture()
        self.decode_graphs: DecodeGraphs | None = None
        self.device = device

    def _capture(self) -> Any:
        """The forward pass as a graph over the step buffers, where the backend has such a thing."""
        if not hasattr(self.kernels, "capture"):
            return None
        with progress.task("Capturing the forward pass"):
            return self.kernels.capture(self.model.forward, self.buffers.full(self.capacity.block_size), self.kv)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile and capture now what steps will need, so that nothing is compiled while requests wait. Plain PyTorch
        has nothing to compile, and waits for the device in the midst of a step."""
        if self.device.type != "cuda" or not getattr(self.kernels, "CUDA_GRAPHS", False):
            return
        c = self.capacity
        with progress.task("Compiling GPU kernels"):
            for batch in warm_up_batches(c):
                logits, _ = self._forward_rows(batch.to(self.device))
                warm_up_sampling(self.kernels, logits[:1], self.rows.tokens)
        with progress.task("Capturing the forward pass"):
            self.decode_graphs = DecodeGraphs(
                self._forward_rows,
                max_num_seqs=c.max_num_seqs,
                max_blocks=self.rows.block_tables.shape[1],
                max_model_len=c.max_model_len,
                device=self.device,
                capture=CudaCapture(self.device),
            )

    def prepare(self, plan: Plan) -> tuple[Batch, np.ndarray]:
        """The step's flat tensors, and for each sequence the row of logits that predicts its next token."""
        self.rows.follow(plan)
        return self.buffers.gather(plan, self.rows)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [num_logits, vocab_size], float32, and final hidden states [num_tokens, hidden_size]; valid until the
        next call."""
        if self.graph is not None:
            return self.graph.replay(batch.num_tokens, batch.num_seqs, batch.num_logits)
        if self.decode_graphs is not None and self.decode_graphs.fits(batch):
            return self.decode_graphs.replay(batch)
        if self.device.type != "cpu":
            return self._forward_rows(batch.to(self.device))
        return self.model.forward(batch, self.kv)

    def _forward_rows(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for a batch on the device, whose tokens are looked up there."""
        batch.token_ids = self.rows.tokens[batch.token_rows, batch.positions]
        return self.model.forward(batch, self.kv)
