"""Random GGUF blocks, and int8 arithmetic in NumPy: the oracle for packed weights."""

import numpy as np
import pytest

from vllm_nb.kernels.quant import BLOCK_SIZES, QuantTensor

# where the float16 scales lie in a block of each type (ggml-common.h)
_SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q4_K": (0, 2),
    "IQ4_NL": (0,),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q8_0": (0,),
}


@pytest.fixture
def random_blocks():
    """random_blocks(type, rows, columns, seed=0) -> QuantTensor of random bits with scales of a sane size."""

    def make(kind: str, rows: int, columns: int, seed: int = 0) -> QuantTensor:
        rng = np.random.default_rng(seed)
        values, size = BLOCK_SIZES[kind]
        raw = rng.integers(0, 256, (rows, columns // values, size), dtype=np.uint8)
        for at in _SCALES[kind]:
            scales = rng.uniform(0.001, 0.01, raw.shape[:2]) * rng.choice([-1, 1], raw.shape[:2])
            raw[:, :, at : at + 2] = scales.astype(np.float16)[..., None].view(np.uint8)
        return QuantTensor(kind, (rows, columns), raw.reshape(rows, -1))

    return make


@pytest.fixture
def round_to_int8():
    """round_to_int8(x [T, K]) -> x as int8 activations stand for it, one scale a 32 inputs, in float64."""

    def rounded(x: np.ndarray) -> np.ndarray:
        padded = np.pad(x.astype(np.float64), ((0, 0), (0, -x.shape[1] % 32))).reshape(len(x), -1, 32)
        largest = np.abs(padded).max(2, keepdims=True)
        step = np.where(largest > 0, largest, 1) / 127
        return (np.rint(padded / step) * step).reshape(len(x), -1)[:, : x.shape[1]]

    return rounded
