"""kernels.quant.dequantize of every GGUF type against the formats' definition, written out value by value.

Definition: the block structs and dequantize_row functions of ggml-common.h and ggml-quants.c in the ggml project.
"""

from collections.abc import Callable

import gguf
import numpy as np
import pytest
import torch

from vllm_nb.kernels.quant import BLOCK_SIZES, QuantTensor, dequantize

Block = np.ndarray  # uint8, the bytes of one block
IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def half(block: Block, at: int) -> float:
    return float(block[at : at + 2].view(np.float16)[0])


def nibble(block: Block, at: int, i: int) -> int:
    """Value i of 32 in 16 bytes: the low halves first, then the high ones."""
    return int(block[at + i % 16]) >> (4 if i >= 16 else 0) & 15


def bit(block: Block, at: int, i: int) -> int:
    return int(block[at + i // 8]) >> i % 8 & 1


def scale_and_min(block: Block, group: int) -> tuple[int, int]:
    """The 6-bit scale and minimum of a group of 32 in Q4_K and Q5_K, packed into bytes 4 to 15."""
    packed = block[4:16].astype(int)
    if group < 4:
        return packed[group] & 63, packed[group + 4] & 63
    low, high = packed[group + 4], (packed[group - 4] >> 6, packed[group] >> 6)
    return low & 15 | high[0] << 4, low >> 4 | high[1] << 4


def k_nibble(block: Block, at: int, i: int) -> int:
    """Value i of 256 in 128 bytes: 64 values share 32 bytes, the first 32 of them the low halves."""
    return int(block[at + i // 64 * 32 + i % 32]) >> (4 if i % 64 >= 32 else 0) & 15


def q2_k(block: Block, i: int) -> float:
    scale = int(block[i // 16])
    value = int(block[16 + i // 128 * 32 + i % 32]) >> 2 * (i % 128 // 32) & 3
    return half(block, 80) * (scale & 15) * value - half(block, 82) * (scale >> 4)


def q3_k(block: Block, i: int) -> float:
    group = i // 16
    low = int(block[96 + group % 8]) >> (4 if group >= 8 else 0) & 15
    high = int(block[104 + group % 4]) >> 2 * (group // 4) & 3
    value = int(block[32 + i // 128 * 32 + i % 32]) >> 2 * (i % 128 // 32) & 3
    above = int(block[i % 32]) >> i // 32 & 1
    return half(block, 108) * ((low | high << 4) - 32) * (value - (0 if above else 4))


def q4_k(block: Block, i: int) -> float:
    scale, minimum = scale_and_min(block, i // 32)
    return half(block, 0) * scale * k_nibble(block, 16, i) - half(block, 2) * minimum


def q5_k(block: Block, i: int) -> float:
    scale, minimum = scale_and_min(block, i // 32)
    value = k_nibble(block, 48, i) | (int(block[16 + i % 32]) >> i // 32 & 1) << 4
    return half(block, 0) * scale * value - half(block, 2) * minimum


def q6_k(block: Block, i: int) -> float:
    part, inner = divmod(i, 128)
    quarter, column = divmod(inner, 32)
    low = int(block[64 * part + 32 * (quarter % 2) + column]) >> (4 if quarter >= 2 else 0) & 15
    high = int(block[128 + 32 * part + column]) >> 2 * quarter & 3
    scale = int(block[192 + i // 16].view(np.int8))
    return half(block, 208) * scale * ((low | high << 4) - 32)


DEFINITIONS: dict[str, Callable[[Block, int], float]] = {
    "Q4_0": lambda b, i: half(b, 0) * (nibble(b, 2, i) - 8),
    "Q4_1": lambda b, i: half(b, 0) * nibble(b, 4, i) + half(b, 2),
    "Q5_0": lambda b, i: half(b, 0) * ((nibble(b, 6, i) | bit(b, 2, i) << 4) - 16),
    "Q5_1": lambda b, i: half(b, 0) * (nibble(b, 8, i) | bit(b, 4, i) << 4) + half(b, 2),
    "Q8_0": lambda b, i: half(b, 0) * int(b[2 + i].view(np.int8)),
    "Q2_K": q2_k,
    "Q3_K": q3_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "IQ4_NL": lambda b, i: half(b, 0) * IQ4_LEVELS[nibble(b, 2, i)],
}
HALVES = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def test_every_quantised_type_has_a_definition_here() -> None:
    assert DEFINITIONS.keys() == BLOCK_SIZES.keys() - {"F32", "F16", "BF16"}


def test_block_sizes_are_gguf_pys() -> None:
    assert {name: gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] for name in BLOCK_SIZES} == BLOCK_SIZES


@pytest.mark.parametrize("type_name", DEFINITIONS)
def test_dequantize(type_name: str) -> None:
    values, nbytes = BLOCK_SIZES[type_name]
    rows, blocks = 3, 2
    rng = np.random.default_rng(2)
    data = rng.integers(0, 256, (rows, blocks, nbytes), dtype=np.uint8)
    for at in HALVES.get(type_name, (0,)):  # random bits would make infinities and NaN
        data[:, :, at : at + 2] = rng.uniform(-0.1, 0.1, (rows, blocks, 1)).astype(np.float16).view(np.uint8)
    expected = [[DEFINITIONS[type_name](block, i) for block in row for i in range(values)] for row in data]
    raw = QuantTensor(type_name, (rows, blocks * values), data.reshape(rows, -1))
    result = dequantize(raw)
    assert result.dtype == torch.float32
    assert result.shape == raw.shape
    np.testing.assert_allclose(result.numpy(), np.array(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_plain_tensors_become_float32(dtype: torch.dtype) -> None:
    plain = torch.randn(3, 5).to(dtype)
    assert dequantize(plain).dtype == torch.float32
    assert torch.equal(dequantize(plain), plain.float())
