"""What an engine's memory goes to: predicted from the headers of a model's files, and measured once it is loaded.

Nothing is guessed that can be asked: the backend packs a few rows of zeros of each kind of weight, and allocates one KV
block, so the prediction holds for any layout it chooses. Only the results between operations are estimated.
"""

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vllm_nb.kernels.quant import BLOCK_SIZES, QuantTensor, RawTensor
from vllm_nb.models.config import ModelConfig
from vllm_nb.weights.checkpoint import Checkpoint, TensorHeader

if TYPE_CHECKING:
    from vllm_nb.engine.capacity import Capacity
    from vllm_nb.engine.placement import Placement
    from vllm_nb.engine.runner import Runner

_SAMPLE_ROWS = 64  # packed to see what a row takes; a multiple of every backend's tile


@dataclass(frozen=True)
class Device:
    """Memory of what the model runs on, bytes. others: in use, but not by this process; runtime: by this process before
    the model came (Python, PyTorch, compiled kernels)."""

    name: str
    total: int
    others: int
    runtime: int


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that one engine takes of a device. activations: results between operations at the largest batch, logits,
    and rotary tables."""

    weights: int
    kv: int
    activations: int


@dataclass(frozen=True)
class MemoryPlan:
    """A prediction, with what it takes to recompute it for other settings (`notebook/panels/memory.py`).

    weight_bytes, kv_token_bytes: by dtype. activation_bytes: of each token of a step ("token"), each row of logits
    ("row") and each token of context ("context"). logits_beside: rows of logits a step has besides one a sequence.
    """

    model: str
    device: Device
    use: MemoryUse
    dtype: str
    weight_bytes: dict[str, int]
    kv_token_bytes: dict[str, int]
    activation_bytes: dict[str, int]
    max_position: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    logits_beside: int
    block_size: int
    num_blocks: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def plan_memory(checkpoint: Checkpoint, model: ModelConfig, capacity: "Capacity", placement: "Placement") -> MemoryPlan:
    """What `checkpoint` will take, from its headers alone; no weight is read."""
    c, kernels = capacity, placement.kernels
    kinds = dict.fromkeys((placement.kv_dtype, torch.bfloat16, torch.float32))
    chosen = _name(placement.kv_dtype)
    held = {kind: kind if kind.is_floating_point else placement.weight_dtype for kind in kinds}
    weights = {_name(kind): _weight_bytes(checkpoint, kernels, held[kind], placement) for kind in kinds}
    tokens = {_name(kind): kv_token_bytes(model, placement, c.block_size, kind) for kind in kinds}
    activations = _activation_bytes(model, placement.dtype.itemsize)
    use = MemoryUse(
        weights[chosen],
        tokens[chosen] * c.num_blocks * c.block_size,
        activations["token"] * c.max_num_batched_tokens
        + activations["row"] * c.max_logits
        + activations["context"] * c.max_model_len,
    )
    return MemoryPlan(
        model=checkpoint.name,
        device=read_device(placement.device),
        use=use,
        dtype=chosen,
        weight_bytes=weights,
        kv_token_bytes=tokens,
        activation_bytes=activations,
        max_position=model.max_position,
        max_model_len=c.max_model_len,
        max_num_seqs=c.max_num_seqs,
        max_num_batched_tokens=c.max_num_batched_tokens,
        logits_beside=c.max_logits - c.max_num_seqs,
        block_size=c.block_size,
        num_blocks=c.num_blocks,
    )


def memory_of(runner: "Runner", plan: MemoryPlan) -> dict[str, Any]:
    """The plan ("predicted"), and what the engine holds now ("measured"), in the same terms.

    Of the latter, "resident": the process as the system sees it, None without psutil; "estimated": names of what the
    backend cannot tell, given as predicted.
    """
    graph = runner.graph
    tables = plan.activation_bytes["context"] * plan.max_model_len
    known = hasattr(graph, "activation_bytes")
    use = MemoryUse(
        runner.model.weight_bytes,
        sum(cache.nbytes for cache in runner.kv),
        graph.activation_bytes + tables if known else plan.use.activations,
    )
    measured = {
        "device": asdict(replace(read_device(runner.device), runtime=plan.device.runtime)),
        "use": asdict(use),
        "estimated": [] if known else ["activations"],
        "resident": _resident(),
    }
    return {"predicted": plan.to_dict(), "measured": measured}


def read_device(device: torch.device) -> Device:
    """As it is at this moment. A GPU machine need not have psutil to run the engine; on its CPU, where nothing runs but
    tests, all memory then counts as free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        ours = torch.cuda.memory_reserved(device)
        return Device(torch.cuda.get_device_name(device), total, total - free - ours, 0)
    resident = _resident()
    if resident is None:
        return Device("CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 0, 0)
    import psutil

    memory = psutil.virtual_memory()
    return Device("CPU", memory.total, max(0, memory.total - memory.available - resident), resident)


def _resident() -> int | None:
    """Bytes of this process, where psutil is there to say it."""
    try:
        import psutil
    except ImportError:
        return None
    return psutil.Process().memory_info().rss


# Weights


def _weight_bytes(checkpoint: Checkpoint, kernels: ModuleType, dtype: torch.dtype, placement: "Placement") -> int:
    @cache
    def packed(kind: str, rows: int, columns: int) -> int:
        return kernels.pack([_zeros(kind, rows, columns)], dtype=dtype, device=placement.device).nbytes

    tied = checkpoint.config.tie_word_embeddings
    return sum(
        _tensor_bytes(name, checkpoint.describe(name), packed, placement.dtype)
        for name in checkpoint.names()
        if not (tied and name == "lm_head.weight")
    )


def _tensor_bytes(name: str, header: TensorHeader, packed: Callable[[str, int, int], int], dtype: torch.dtype) -> int:
    if len(header.shape) != 2:  # norms are float32 at least, biases as the activations
        kind = dtype if name.endswith(".bias") else torch.promote_types(dtype, torch.float32)
        return math.prod(header.shape) * kind.itemsize
    rows, columns = header.shape
    whole, rest = divmod(rows, _SAMPLE_ROWS)
    size = whole * packed(header.type, _SAMPLE_ROWS, columns) if whole else 0
    return size + (packed(header.type, rest, columns) if rest else 0)


def _zeros(kind: str, rows: int, columns: int) -> RawTensor:
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(kind)
    if dtype is not None:
        return torch.zeros(rows, columns, dtype=dtype)
    values, size = BLOCK_SIZES[kind]
    return QuantTensor(kind, (rows, columns), np.zeros((rows, columns // values * size), np.uint8))


# KV cache and activations


def kv_token_bytes(model: ModelConfig, placement: "Placement", block_size: int, dtype: torch.dtype) -> int:
    """A token's keys and values in all layers, scales and padding included."""
    shape = (1, block_size, model.num_kv_heads, model.head_dim)
    block = placement.kernels.allocate_kv(*shape, dtype, placement.device)
    return model.num_layers * math.ceil(block.nbytes / block_size)


def _activation_bytes(model: ModelConfig, itemsize: int) -> dict[str, int]:
    """An estimate: a pass holds some results of the hidden size, one of each wider kind, and rounded copies of what the
    products read."""
    hidden, inner, heads = model.hidden_size, model.intermediate_size, model.num_heads * model.head_dim
    qkv = heads + 2 * model.num_kv_heads * model.head_dim
    results = 6 * hidden + qkv + 3 * inner
    tables = 2 if model.rope.local_theta else 1
    return {
        "token": itemsize * results + 3 * (hidden + inner + heads) // 2,
        "row": 4 * model.vocab_size + itemsize * hidden,
        "context": 4 * tables * (model.rope.rotary_dim or model.head_dim),
    }


def _name(kv_dtype: torch.dtype) -> str:
    """The dtype setting that keeps the cache so: 8 bits are what the CPU backend chooses by itself."""
    return "auto" if kv_dtype == torch.int8 else str(kv_dtype).removeprefix("torch.")
