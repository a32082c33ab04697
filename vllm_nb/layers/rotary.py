"""Rotary position embedding (Su et al. 2021) as a table, with the ways of stretching it over a longer context."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vllm_nb.errors import ModelLoadError

Scaling = Mapping[str, Any]

_CHUNK = 512  # positions computed at a time: their angles stay in the processor's cache


def cos_sin_table(
    theta: float,
    rotary_dim: int,
    max_len: int,
    *,
    scaling: Scaling | None = None,
    max_position: int,
    device: torch.device,
) -> Tensor:
    """float32 [max_len, rotary_dim]: cosines in the first half of the columns, sines in the second.

    theta: the base; max_position: tokens the model was made for; scaling: the `rope_scaling` dictionary of Hugging Face
    configs, of type "default", "linear", "dynamic", "yarn" or "llama3", or GGUF's "factors".

    Raises ModelLoadError for any other type, a missing key, and "dynamic" beyond max_position: its frequencies would
    change while a sequence grows, and keys that are in the cache cannot be turned again.
    """
    # In float64, because an angle's error grows with the position.
    powers = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
    frequencies, amplitude = _scaled(theta**-powers, theta, scaling or {}, max_len, max_position)
    table = torch.empty(max_len, 2 * len(frequencies), device=device)
    for start in range(0, max_len, _CHUNK):
        rows = table[start : start + _CHUNK]
        positions = torch.arange(start, start + len(rows), dtype=torch.float64)
        angles = torch.outer(positions, frequencies)  # [rows, rotary_dim / 2]
        rows[:, : len(frequencies)] = torch.cos(angles) * amplitude
        rows[:, len(frequencies) :] = torch.sin(angles) * amplitude
    return table


def _scaled(
    frequencies: Tensor, theta: float, scaling: Scaling, max_len: int, max_position: int
) -> tuple[Tensor, float]:
    """Frequencies [rotary_dim / 2] after scaling, and the factor on cosines and sines."""
    kind = scaling.get("rope_type", "default")
    if kind == "dynamic" and max_len > max_position:
        raise ModelLoadError(
            f"The model stretches its context with dynamic NTK scaling, which is supported up to the {max_position} "
            f"tokens it was made for, not {max_len}: lower max_model_len."
        )
    if kind in ("default", "dynamic"):
        return frequencies, 1.0
    if kind not in _SCALINGS:
        supported = ", ".join(["default", "dynamic", *_SCALINGS])
        raise ModelLoadError(f"The model's rotary scaling {kind!r} is not supported; supported are {supported}.")
    scaling = {"original_max_position_embeddings": max_position, **scaling}
    try:
        return _SCALINGS[kind](frequencies, theta, scaling)
    except KeyError as error:
        raise ModelLoadError(f"The model's rotary scaling {kind!r} lacks the key {error}.") from error


def _linear(frequencies: Tensor, theta: float, scaling: Scaling) -> tuple[Tensor, float]:
    """Position interpolation (Chen et al. 2023)."""
    return frequencies / scaling["factor"], 1.0


def _factors(frequencies: Tensor, theta: float, scaling: Scaling) -> tuple[Tensor, float]:
    """A divisor for each frequency: how GGUF files carry Llama 3's scaling."""
    return frequencies / torch.tensor(scaling["factors"], dtype=torch.float64), 1.0


def _llama3(frequencies: Tensor, theta: float, scaling: Scaling) -> tuple[Tensor, float]:
    """Llama 3.1: long waves are stretched, short ones stay, those between are blended."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)  # within the original context
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (keep + (1 - keep) / scaling["factor"]), 1.0


def _yarn(frequencies: Tensor, theta: float, scaling: Scaling) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023): as `_llama3`, with a ramp over the dimensions, and a sharper softmax."""
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    rotary_dim = 2 * len(frequencies)

    def dimension(turns: float) -> float:
        """Which pair of dimensions turns this many times within the original context."""
        return rotary_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    width = last - first or 0.001
    stretch = ((torch.arange(len(frequencies), dtype=torch.float64) - first) / width).clamp(0, 1)
    frequencies = frequencies * (1 - stretch + stretch / factor)
    return frequencies, _yarn_amplitude(factor, scaling)


def _yarn_amplitude(factor: float, scaling: Scaling) -> float:
    """The attention factor: given, or by the paper's rule, which DeepSeek's mscale keys refine."""

    def rule(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    given, mscale, mscale_all = (scaling.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return given
    return rule(mscale) / rule(mscale_all) if mscale and mscale_all else rule(1.0)


_SCALINGS: dict[str, Callable[[Tensor, float, Scaling], tuple[Tensor, float]]] = {
    "linear": _linear,
    "factors": _factors,
    "llama3": _llama3,
    "yarn": _yarn,
}
