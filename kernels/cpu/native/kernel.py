"""What a kernel's source needs besides `simd`: registration, its arguments, and a fair share of the work."""

from collections.abc import Callable
from typing import Any

from numba import njit

from vllm_nb.kernels.cpu import layout
from vllm_nb.kernels.cpu.native.simd import load_i64
from vllm_nb.kernels.cpu.native.sync import atomic_add, atomic_load, atomic_store, call_int, spin_hint

SPINS = 500  # some ten microseconds
OPTIONS: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
Function = Callable[..., None]  # kernel(args, step, thread, threads), all int

# name -> the function to compile, or what makes it
KERNELS: dict[str, Callable[[], Function]] = {}


def kernel(function: Function) -> Function:
    """Decorator: register kernel(args, step, thread, threads) under its own name."""
    KERNELS[function.__name__] = lambda: function
    return function


def helper(function: Any) -> Any:
    """Decorator: a function that kernels call; compiled with them."""
    return njit(**OPTIONS)(function)


@helper
def arg(args: int, number: int) -> int:
    """The instruction's argument `number`."""
    return load_i64(args + 8 * number)


@helper
def header(step: int, word: int) -> int:
    return load_i64(step + 8 * word)


@helper
def scratch(step: int, thread: int) -> int:
    """Address of this thread's private memory."""
    return load_i64(step + 8 * layout.SCRATCH_AT) + thread * load_i64(step + 8 * layout.SCRATCH_BYTES)


@helper
def share(items: int, thread: int, threads: int) -> tuple[int, int]:
    """(start, stop) of this thread's part of `items`."""
    return items * thread // threads, items * (thread + 1) // threads


@helper
def wait_for_all(step: int, threads: int) -> None:
    """A barrier. It spins, as the others are microseconds away; after a while it yields, so that more threads than
    processors still get on."""
    if threads == 1:
        return
    arrived = load_i64(step + 8 * layout.BARRIER_AT)
    generation = arrived + layout.CACHE_LINE
    current = atomic_load(generation)
    if atomic_add(arrived, 1) == threads - 1:
        atomic_store(arrived, 0)
        atomic_store(generation, current + 1)
        return
    spins = 0
    while atomic_load(generation) == current:
        spins += 1
        if spins < SPINS:
            spin_hint()
        else:
            call_int(load_i64(step + 8 * layout.YIELD_AT))
