"""A quick check that a variant's matrix product is right on this processor, before anything relies on it."""

import numpy as np
import torch

from vllm_nb.kernels.cpu import layout
from vllm_nb.kernels.cpu.backend import State
from vllm_nb.kernels.cpu.packing import pack
from vllm_nb.kernels.quant import QuantTensor

_ROWS, _COLUMNS = 32, 96


def passes(state: State) -> bool:
    """Multiplies a small 8-bit matrix with 1, 9 and 20 rows, and compares with NumPy."""
    rng = np.random.default_rng(0)
    blocks = _COLUMNS // 32
    raw = rng.integers(0, 256, (_ROWS, blocks, 34), dtype=np.uint8)
    raw[..., :2] = np.full(1, 0.5, np.float16).view(np.uint8)
    weight = pack([QuantTensor("Q8_0", (_ROWS, _COLUMNS), raw.reshape(_ROWS, -1))], dtype=torch.float32)
    values = raw[..., 2:].copy().view(np.int8).reshape(_ROWS, _COLUMNS).astype(np.float64) * 0.5
    for rows in (1, 9, 20):
        x = rng.integers(-127, 128, (rows, _COLUMNS)).astype(np.float32)
        x[:, ::32] = 127  # a largest value of 127 in each block: quantising changes nothing
        if not np.array_equal(_multiply(state, x, weight.segments[0].data), x @ values.T):
            return False
    return True


def _multiply(state: State, x: np.ndarray, tiles: torch.Tensor) -> np.ndarray:
    rows, blocks = len(x), _COLUMNS // 32
    records = np.empty((rows + layout.GROUP_ROWS) * blocks * layout.RECORD_BYTES, np.int8)
    out = np.full((rows, _ROWS), np.nan, np.float32)
    program = np.zeros((2, layout.INSTRUCTION_WORDS), np.int64)
    x_at, records_at, out_at = (a.ctypes.data for a in (x, records, out))
    for line, kernel, args in (
        (program[0], "quantize", (0, x_at, _COLUMNS, records_at)),
        (program[1], "linear_q8", (0, tiles.data_ptr(), _ROWS // 16, blocks, records_at, out_at, _ROWS, _ROWS, 0)),
    ):
        line[:2] = state.library.address(kernel), layout.BARRIER
        line[layout.ARGUMENTS_AT : layout.ARGUMENTS_AT + len(args)] = args
    state.team.reserve(layout.LINEAR_SCRATCH_BYTES)
    state.team.run(program, rows, 1, rows)
    return out
