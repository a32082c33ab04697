"""A weight as it lies in a file: GGUF block-quantised bytes, or a plain tensor. The input of every backend's `pack`."""

from dataclasses import dataclass

import numpy as np
import torch

# GGML type name -> (values in a block, bytes in a block).
# Source: the GGUF specification and ggml-common.h of the ggml project.
BLOCK_SIZES = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ4_NL": (32, 18),
}


@dataclass(frozen=True)
class QuantTensor:
    """Rows of GGUF blocks.

    type: a name in BLOCK_SIZES that is quantised; shape: (rows, columns) in values;
    data: uint8 [rows, bytes per row], often a read-only view of the memory-mapped file.
    """

    type: str
    shape: tuple[int, int]
    data: np.ndarray


RawTensor = QuantTensor | torch.Tensor


def dequantize(raw: RawTensor) -> torch.Tensor:
    """The tensor's values as float32: exact for every format, a block's scale times a small integer, plus a minimum."""
    if isinstance(raw, torch.Tensor):
        return raw.float()
    from gguf import GGMLQuantizationType, quants  # 60 ms; only the reference path needs it

    values = quants.dequantize(raw.data, GGMLQuantizationType[raw.type])
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(raw.shape)
