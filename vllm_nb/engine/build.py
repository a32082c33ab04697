"""From a checkpoint and a config to a running core: which device, kernels and dtype, and how large the KV cache is."""

import importlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from types import ModuleType

import psutil
import torch

from vllm_nb import progress
from vllm_nb.config import EngineConfig
from vllm_nb.engine.block_manager import BlockManager
from vllm_nb.engine.engine import EngineCore
from vllm_nb.engine.events import EventLog
from vllm_nb.engine.memory import MemoryPlan, plan_memory
from vllm_nb.engine.runner import Capacity, Runner
from vllm_nb.engine.sampler import Sampler
from vllm_nb.engine.scheduler import Scheduler
from vllm_nb.errors import ModelLoadError
from vllm_nb.inspection.info import EngineInfo
from vllm_nb.models.config import ModelConfig
from vllm_nb.models.registry import build as build_model
from vllm_nb.weights.checkpoint import Checkpoint

PROMPT_LOGITS = 64  # most logits rows a step spends on prompt_logprobs
DEFAULT_KV_TOKENS = 16384  # or two full contexts, if that is more: plenty for a few users, little memory


@dataclass(frozen=True)
class Placement:
    """Where and in what the model runs."""

    device: torch.device
    kernels: ModuleType
    dtype: torch.dtype  # of activations
    weight_dtype: torch.dtype  # of weights that the kernels do not keep quantised
    kv_dtype: torch.dtype


def place(config: EngineConfig) -> Placement:
    """Resolve every "auto". Raises ModelLoadError when the machine lacks what was asked for."""
    device = _device(config.device)
    name = config.backend
    if name == "auto":
        in_range = config.dtype in ("auto", "float32", "bfloat16")
        name = "cpu" if device.type == "cpu" and in_range else "reference"
    if name == "cpu" and device.type != "cpu":
        raise ModelLoadError(f"backend 'cpu' cannot run on device {device.type!r}; leave one of the two on auto")
    kernels = importlib.import_module(f"vllm_nb.kernels.{name}")
    if name == "cpu":
        _prepare_cpu(kernels, config.threads)
    if name == "cpu":  # computes in float32, whatever weights and cache are held in
        held = torch.float32 if config.dtype == "float32" else torch.bfloat16
        return Placement(device, kernels, torch.float32, held, held)
    plain = "float32" if device.type == "cpu" else "bfloat16"
    dtype = getattr(torch, plain if config.dtype == "auto" else config.dtype)
    return Placement(device, kernels, dtype, dtype, dtype)


def build_core(checkpoint: Checkpoint, config: EngineConfig) -> EngineCore:
    """Load the weights and set up everything a step needs. Raises ModelLoadError."""
    placement = place(config)
    checkpoint.config = _stretched(checkpoint.config, config.yarn_factor)
    capacity = plan_capacity(checkpoint.config, config, placement)
    model = build_model(
        checkpoint,
        placement.kernels,
        dtype=placement.dtype,
        weight_dtype=placement.weight_dtype,
        device=placement.device,
        max_len=capacity.max_model_len,
    )
    runner = Runner(model, placement.kernels, capacity, kv_dtype=placement.kv_dtype, device=placement.device)
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
    return EngineCore(scheduler, runner, Sampler(placement.kernels), events, info)


def predict_memory(checkpoint: Checkpoint, config: EngineConfig) -> MemoryPlan:
    """What memory the engine will take, from its files' headers. Raises ModelLoadError where it cannot be built."""
    placement = place(config)
    model = _stretched(checkpoint.config, config.yarn_factor)
    return plan_memory(checkpoint, model, plan_capacity(model, config, placement), placement)


def plan_capacity(model: ModelConfig, config: EngineConfig, placement: Placement) -> Capacity:
    """How long and how many: the KV cache from memory, the context from model and cache."""
    if config.max_model_len is not None and config.max_model_len > model.max_position:
        raise ModelLoadError(
            f"max_model_len {config.max_model_len:,} is more than the {model.max_position:,} tokens this model was "
            "made for; lower it, or stretch the context with with_yarn_scaling_factor(...)"
        )
    wanted = config.max_model_len or model.max_position
    num_blocks = config.num_kv_blocks or _blocks_that_fit(model, config, placement, wanted)
    num_tokens = num_blocks * config.block_size
    if config.max_model_len is not None and config.max_model_len > num_tokens:
        raise ModelLoadError(
            f"max_model_len {config.max_model_len:,} does not fit the KV cache of {num_tokens:,} tokens; "
            "lower it, or raise kv_fraction or num_kv_blocks"
        )
    return Capacity(
        max_model_len=min(wanted, num_tokens),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_logits=config.max_num_seqs + PROMPT_LOGITS,
        block_size=config.block_size,
        num_blocks=num_blocks,
    )


def _prepare_cpu(kernels: ModuleType, threads: int | None) -> None:
    """Compile the CPU kernels on first use, and choose the number of threads."""
    with ExitStack() as stack:
        advance: Callable[[float], None] | None = None
        ready = 0

        def show(phase: str, done: int, total: int) -> None:
            nonlocal advance, ready
            if advance is None:
                advance = stack.enter_context(progress.task(phase, total, "kernels"))
            advance(done - ready)
            ready = done

        kernels.prepare(show)
    if threads is not None:
        kernels.set_threads(threads)


def _blocks_that_fit(model: ModelConfig, config: EngineConfig, placement: Placement, max_len: int) -> int:
    block_bytes = _kv_bytes_per_token(model, placement) * config.block_size
    if placement.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(placement.device)
        wanted = None
    else:
        free, wanted = psutil.virtual_memory().available, max(DEFAULT_KV_TOKENS, 2 * max_len)
    fitting = int(free * config.kv_fraction) // block_bytes
    if fitting < 1:
        raise ModelLoadError(
            f"{free / 2**20:,.0f} MiB of memory are free, and kv_fraction {config.kv_fraction} of that holds no KV "
            f"block of {block_bytes / 2**20:,.1f} MiB; free some memory or raise kv_fraction"
        )
    return fitting if wanted is None else min(fitting, -(-wanted // config.block_size))


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


def _kv_bytes_per_token(model: ModelConfig, placement: Placement) -> int:
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * placement.kv_dtype.itemsize


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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name]:
        usable = ", ".join(device for device, ok in available.items() if ok)
        raise ModelLoadError(f"device {name!r} is not available here (this PyTorch sees: {usable}); use one of those")
    return torch.device(name)
