"""From a checkpoint and a config to a running core, and how large its KV cache is."""

import time
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch

from vllm_nb.config import EngineConfig
from vllm_nb.engine.block_manager import BlockManager
from vllm_nb.engine.capacity import Capacity
from vllm_nb.engine.engine import EngineCore
from vllm_nb.engine.events import EventLog
from vllm_nb.engine.memory import MemoryPlan, kv_token_bytes, plan_memory
from vllm_nb.engine.placement import Placement, place
from vllm_nb.engine.runner import Runner, allocate_kv
from vllm_nb.engine.sampler import Sampler
from vllm_nb.engine.scheduler import Scheduler
from vllm_nb.engine.warm_up import profile_step
from vllm_nb.errors import ModelLoadError
from vllm_nb.inspection.info import EngineInfo
from vllm_nb.models.config import ModelConfig
from vllm_nb.models.registry import build as build_model
from vllm_nb.weights.checkpoint import Checkpoint

PROMPT_LOGITS = 64  # most logits rows a step spends on prompt_logprobs
DEFAULT_KV_TOKENS = 16384  # or two full contexts, if that is more: plenty for a few users, little memory


def build_core(checkpoint: Checkpoint, config: EngineConfig) -> EngineCore:
    """Load the weights and set up everything a step needs. Raises ModelLoadError."""
    placement = place(config)
    checkpoint.config = _stretched(checkpoint.config, config.yarn_factor)
    capacity = plan_capacity(checkpoint.config, config, placement)
    on_gpu = placement.device.type == "cuda"
    # Before the weights, because the CPU backend gets its memory ready meanwhile.
    kv = [] if on_gpu else _allocate_kv(checkpoint.config, capacity, placement)
    model = build_model(
        checkpoint,
        placement.kernels,
        dtype=placement.dtype,
        weight_dtype=placement.weight_dtype,
        device=placement.device,
        max_len=capacity.max_model_len,
    )
    if on_gpu:  # what is free is known only now
        capacity = plan_capacity(checkpoint.config, config, placement, profile_step(model, capacity, placement))
        kv = _allocate_kv(checkpoint.config, capacity, placement)
    runner = Runner(model, placement.kernels, capacity, kv, device=placement.device)
    runner.warm_up()
    events = EventLog()
    stored = _max_stored_blocks(config, capacity)
    scheduler = Scheduler(
        BlockManager(capacity.num_blocks, capacity.block_size, stored, events),
        events,
        max_num_seqs=capacity.max_num_seqs,
        max_num_batched_tokens=capacity.max_num_batched_tokens,
        prefill_chunk=config.prefill_chunk,
        max_prompt_logits=PROMPT_LOGITS,
    )
    info = _describe(checkpoint, placement, runner, prefix_cache=stored > 0)
    sampler = Sampler(placement.kernels, runner.rows)
    return EngineCore(scheduler, runner, sampler, events, info, overlap=placement.overlap)


def _allocate_kv(model: ModelConfig, capacity: Capacity, placement: Placement) -> list[Any]:
    return allocate_kv(placement.kernels, model, capacity, placement.kv_dtype, placement.device)


def predict_memory(checkpoint: Checkpoint, config: EngineConfig) -> MemoryPlan:
    """What memory the engine will take, from its files' headers. Raises ModelLoadError where it cannot be built."""
    placement = place(config)
    model = _stretched(checkpoint.config, config.yarn_factor)
    return plan_memory(checkpoint, model, plan_capacity(model, config, placement), placement)


def plan_capacity(
    model: ModelConfig, config: EngineConfig, placement: Placement, activation_bytes: int = 0
) -> Capacity:
    """How long and how many: the KV cache from memory, the context from model and cache. activation_bytes: to be left
    free for a step's results."""
    if config.max_model_len is not None and config.max_model_len > model.max_position:
        raise ModelLoadError(
            f"max_model_len {config.max_model_len:,} is more than the {model.max_position:,} tokens this model was "
            "made for; lower it, or stretch the context with yarn_factor"
        )
    wanted = config.max_model_len or model.max_position
    block_bytes = kv_token_bytes(model, placement, config.block_size, placement.kv_dtype) * config.block_size
    if config.num_kv_blocks is None:
        free = _read_memory(placement.device)[0] - activation_bytes
        num_blocks = _blocks_that_fit(config, placement.device, wanted, block_bytes, free)
    else:
        num_blocks = config.num_kv_blocks
        _check_memory(num_blocks, block_bytes, placement.device, activation_bytes)
    num_tokens = num_blocks * config.block_size
    if config.max_model_len is not None and config.max_model_len > num_tokens:
        raise ModelLoadError(
            f"max_model_len {config.max_model_len:,} does not fit the KV cache of {num_tokens:,} tokens; "
            "lower it, or raise kv_fraction or num_kv_blocks"
        )
    return Capacity(
        max_model_len=min(wanted, num_tokens),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=_step_budget(config, placement.device),
        max_logits=config.max_num_seqs + PROMPT_LOGITS,
        block_size=config.block_size,
        num_blocks=num_blocks,
    )


def _step_budget(config: EngineConfig, device: torch.device) -> int:
    """Tokens. A processor's caches hold what some hundred tokens leave for each other, and no more."""
    usual = 512 if device.type == "cuda" else 256
    return config.max_num_batched_tokens or max(usual, config.max_num_seqs)


def _read_memory(device: torch.device) -> tuple[int, int]:
    """(free, all there is) in bytes. ImportError without psutil, unless the device is a GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what loading has left over counts as free
        return torch.cuda.mem_get_info(device)
    import psutil

    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _blocks_that_fit(config: EngineConfig, device: torch.device, max_len: int, block_bytes: int, free: int) -> int:
    kv_fraction = config.kv_fraction or (0.9 if device.type == "cuda" else 0.3)
    fitting = int(free * kv_fraction) // block_bytes
    if fitting < 1:
        raise ModelLoadError(
            f"{free / 2**20:,.0f} MiB of memory are free, and kv_fraction {kv_fraction} of that holds no KV "
            f"block of {block_bytes / 2**20:,.1f} MiB; free some memory or raise kv_fraction"
        )
    if device.type == "cuda":
        return fitting
    return min(fitting, -(-max(DEFAULT_KV_TOKENS, 2 * max_len) // config.block_size))


def _check_memory(num_blocks: int, block_bytes: int, device: torch.device, activation_bytes: int) -> None:
    """A GPU's memory is taken at once, so what is free counts; elsewhere it is taken as it is used, so all there is."""
    try:
        free, total = _read_memory(device)
    except ImportError:
        return  # a machine set up for its GPU alone, whose CPU is used for tests
    asked, free = num_blocks * block_bytes, free - activation_bytes
    if asked > (free if device.type == "cuda" else total):
        where = "the GPU" if device.type == "cuda" else "this machine"
        raise ModelLoadError(
            f"num_kv_blocks {num_blocks:,} would be a KV cache of {asked / 1e9:,.1f} GB, and {where} has "
            f"{total / 1e9:,.1f} GB of memory, {free / 1e9:,.1f} GB of it free; lower num_kv_blocks, or leave it out: "
            "then kv_fraction of what is free is taken"
        )


def _describe(checkpoint: Checkpoint, placement: Placement, runner: Runner, *, prefix_cache: bool) -> EngineInfo:
    model, capacity = checkpoint.config, runner.capacity
    return EngineInfo(
        model=checkpoint.name,
        version=version("vllm-nb"),
        device=str(placement.device),
        backend=placement.kernels.__name__.rpartition(".")[2],
        dtype=str(placement.dtype).removeprefix("torch."),
        kv_dtype=str(placement.kv_dtype).removeprefix("torch."),
        num_layers=model.num_layers,
        vocab_size=model.vocab_size,
        block_size=capacity.block_size,
        num_blocks=capacity.num_blocks,
        max_model_len=capacity.max_model_len,
        max_num_seqs=capacity.max_num_seqs,
        max_num_batched_tokens=capacity.max_num_batched_tokens,
        prefix_cache=prefix_cache,
        weight_bytes=runner.model.weight_bytes,
        step_weight_bytes=runner.model.step_bytes,
        kv_bytes=sum(cache.nbytes for cache in runner.kv),
        sliding_window=model.sliding_window,
        sliding_layers=model.sliding_layers,
        wall_clock=time.time() - time.monotonic(),
    )


def _max_stored_blocks(config: EngineConfig, capacity: Capacity) -> int:
    if not config.prefix_cache:
        return 0
    if config.prefix_cache_max_tokens is None:
        return capacity.num_blocks
    return min(capacity.num_blocks, config.prefix_cache_max_tokens // capacity.block_size)


def _stretched(model: ModelConfig, factor: float | None) -> ModelConfig:
    """The model with its context stretched by YaRN (Peng et al. 2023)."""
    if factor is None or factor == 1:
        return model
    if model.rope.scaling:
        kind = model.rope.scaling.get("rope_type")
        raise ModelLoadError(f"this model already scales its rotary embedding ({kind}); leave the YaRN factor out")
    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": model.max_position}
    return replace(model, rope=replace(model.rope, scaling=scaling), max_position=int(model.max_position * factor))
