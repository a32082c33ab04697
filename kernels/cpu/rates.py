"""How fast the processor multiplies in registers alone: what no product with weights can exceed."""

import time

import numpy as np
import torch

from vllm_nb.kernels.cpu.backend import state
from vllm_nb.kernels.cpu.formats import FORMATS
from vllm_nb.kernels.cpu.layout import RATE_CHAINS
from vllm_nb.kernels.cpu.program import Program
from vllm_nb.kernels.cpu.threads import Team

# what is multiplied -> multiplications in one vector of 16 sums
RATES = {"int8": 64, "bf16": 32, "f32": 16}

_TIMES, _REPEATS = 20000, 150  # a repeat takes about a millisecond; at first, threads may share a core for a while


def multiplied_as(kind: str) -> str:
    """How weights of a packed format, or of "bf16", "f16", "f32", are multiplied."""
    if kind in FORMATS:
        return "int8"
    return "bf16" if kind == "bf16" and state().isa.pairs else "f32"


def product_rate(kind: str) -> float:
    """Operations a second of all threads, two for each multiplication: the best of several runs. kind: of RATES"""
    program = Program()
    team = program.state.team
    program.add(f"rate_{kind}", torch.ones(team.size, RATE_CHAINS, 16), _TIMES)
    code = program.assembled()
    seconds = min(_seconds(team, code) for _ in range(_REPEATS))
    return 2 * RATES[kind] * _TIMES * RATE_CHAINS * team.size / seconds


def product_rates() -> dict[str, float]:
    return {kind: product_rate(kind) for kind in RATES}


def _seconds(team: Team, code: np.ndarray) -> float:
    start = time.perf_counter()
    team.run(code, 1, 1, 1)
    return time.perf_counter() - start
