"""Where a model runs, on which kernels and in which types: every "auto" resolved, and what the machine lacks said."""

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import ModuleType

import torch

from vllm_nb import progress
from vllm_nb.config import EngineConfig
from vllm_nb.errors import ModelLoadError

log = logging.getLogger(__name__)

_CPU_DTYPES = ("auto", "float32", "bfloat16")
_CPU_BLOCK = 16  # keys that its attention takes together
_LEAST_CAPABILITY = (8, 0)  # Ampere: bfloat16 on tensor cores


@dataclass(frozen=True)
class Placement:
    """Where and in what the model runs."""

    device: torch.device
    kernels: ModuleType
    dtype: torch.dtype  # of activations
    weight_dtype: torch.dtype  # of weights that the kernels do not keep quantised
    kv_dtype: torch.dtype
    overlap: bool  # the next step is launched while the last one's tokens are dealt with


def place(config: EngineConfig) -> Placement:
    """Raises ModelLoadError when the machine lacks what was asked for."""
    device = _device(config.device)
    name = _backend(config, device)
    if config.threads is not None and config.threads > (processors := os.cpu_count() or 1):
        log.warning("%d threads take turns on %d processors, which is slower than as many", config.threads, processors)
    kernels = importlib.import_module(f"vllm_nb.kernels.{name}")
    if name == "cpu":  # computes in float32, whatever weights and cache are held in
        _prepare_cpu(kernels)
        kernels.set_threads(config.threads)
        held = torch.float32 if config.dtype == "float32" else torch.bfloat16
        kv_dtype = torch.int8 if config.dtype == "auto" else held
        return Placement(device, kernels, torch.float32, held, kv_dtype, overlap=False)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    plain = "float32" if device.type == "cpu" else "bfloat16"
    dtype = getattr(torch, plain if config.dtype == "auto" else config.dtype)
    overlap = device.type == "cuda" if config.overlap is None else config.overlap
    return Placement(device, kernels, dtype, dtype, dtype, overlap)


def _backend(config: EngineConfig, device: torch.device) -> str:
    name = _named_backend(config, device)
    if name == "cpu":
        _check_cpu(config)
    return name


def _check_cpu(config: EngineConfig) -> None:
    """What the CPU kernels cannot do."""
    if config.overlap:
        raise ModelLoadError(
            "overlap does nothing for backend 'cpu': there a step runs on the processor that has to deal with the last "
            "one's tokens, so they cannot run beside each other; leave overlap out"
        )
    if config.dtype not in _CPU_DTYPES:
        raise ModelLoadError(
            f"backend 'cpu' does not compute in {config.dtype}: take dtype {', '.join(_CPU_DTYPES)}, or backend "
            "reference"
        )
    if config.block_size % _CPU_BLOCK:
        raise ModelLoadError(f"block_size must be a multiple of {_CPU_BLOCK} on a CPU, not {config.block_size}")


def _named_backend(config: EngineConfig, device: torch.device) -> str:
    name = config.backend
    if name == "cpu" and device.type != "cpu":
        raise ModelLoadError(f"backend 'cpu' cannot run on device {device.type!r}; leave one of the two on auto")
    if name == "triton":
        obstacle = obstacle_to_triton(device, config.dtype)
        if obstacle:
            raise ModelLoadError(f"backend 'triton' cannot be used: {obstacle}, or leave the backend on auto")
    if name != "auto":
        return name
    if device.type == "cpu":
        if config.dtype in _CPU_DTYPES:
            return "cpu"
        log.warning(
            "running on plain PyTorch kernels, which are slow: the fast ones do not compute in %s; take dtype %s",
            config.dtype, ", ".join(_CPU_DTYPES),
        )  # fmt: skip
    if device.type == "cuda":
        obstacle = obstacle_to_triton(device, config.dtype)
        if not obstacle:
            return "triton"
        log.warning("running on plain PyTorch kernels, which are slow: %s", obstacle)
    return "reference"


def obstacle_to_triton(device: torch.device, dtype: str = "auto") -> str:
    """What keeps Triton's kernels from running here, and what to do; empty: nothing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; install it with pip install 'vllm-nb[gpu]'"
    if dtype == "float64":
        return "its kernels do not compute in float64; take dtype float32 or bfloat16"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < _LEAST_CAPABILITY:
            found, least = (f"{major}.{minor}" for major, minor in (capability, _LEAST_CAPABILITY))
            name = torch.cuda.get_device_name(device)
            return (
                f"{name} has compute capability {found} and the kernels need {least} (Ampere) or newer; take device cpu"
            )
        return _obstacle_to_compiling()
    from triton import knobs

    if device.type == "cpu" and knobs.runtime.interpret:  # how the tests run them
        return ""
    return f"its kernels need an NVIDIA GPU and the device is {device.type!r}; take device cuda"


def _obstacle_to_compiling() -> str:
    """Triton builds its own link to the driver when it is first used."""
    from triton.runtime import driver

    try:
        driver.active.get_current_target()
    except Exception as error:  # a compiler that is missing, headers, a driver: each raises something else
        return (
            f"Triton does not start ({_first_line(error)}); it needs a C compiler, Python's headers and an NVIDIA "
            "driver, or take device cpu"
        )
    return ""


def _prepare_cpu(kernels: ModuleType) -> None:
    """Compile the CPU kernels on first use."""
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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name]:
        usable = ", ".join(device for device, ok in available.items() if ok)
        why = _why_no_cuda() if name == "cuda" else "it needs a Mac with Apple silicon"
        raise ModelLoadError(f"device {name!r} is not available here: {why}; or use one that is: {usable}")
    return torch.device(name)


def _why_no_cuda() -> str:
    """And what to do."""
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA; install a build for CUDA"
    try:
        torch.cuda.init()
    except Exception as error:
        return f"CUDA does not start ({_first_line(error)}); install or update the NVIDIA driver"
    return "PyTorch finds no NVIDIA GPU; look at nvidia-smi and CUDA_VISIBLE_DEVICES"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
