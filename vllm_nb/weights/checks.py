"""What both file formats share: checks of what was read, and the context that rotary scaling gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_nb.errors import ModelLoadError
from vllm_nb.models.config import ModelConfig
from vllm_nb.sampling import SamplingParams


def check_sizes(config: ModelConfig, path: Path) -> ModelConfig:
    """The configuration, if its sizes agree with each other."""
    rotary_dim = config.rope.rotary_dim or config.head_dim
    if config.num_heads % config.num_kv_heads:
        problem = f"{config.num_heads} attention heads cannot share {config.num_kv_heads} key-value heads evenly"
    elif rotary_dim % 2 or not 2 <= rotary_dim <= config.head_dim:
        problem = f"{rotary_dim} rotary dimensions are not an even number within the head's {config.head_dim}"
    else:
        return config
    raise ModelLoadError(f"The sizes in {path} contradict each other: {problem}.")


def check_sampling(sampling: dict[str, float], path: Path) -> dict[str, float]:
    """The makers' advice, if a request may ask for it; top_k as a whole number."""
    advice: dict[str, Any] = {name: int(value) if name == "top_k" else value for name, value in sampling.items()}
    try:
        SamplingParams(**advice)
    except ValueError as error:
        raise ModelLoadError(f"The sampling advice in {path} is out of range: {error}.") from error
    return advice


def unsupported_architecture(name: str, path: Path, readable: Sequence[str]) -> ModelLoadError:
    return ModelLoadError(
        f"{path} describes a model of the architecture {name!r}, which is not supported; "
        f"supported are {', '.join(readable)}."
    )


def stretched_context(max_position: int, scaling: dict[str, Any] | None) -> int:
    """The model's context in tokens.

    YaRN is switched on in Qwen's files without raising their max_position_embeddings, and says what it stretches.
    """
    if scaling is None or scaling["rope_type"] != "yarn" or "original_max_position_embeddings" not in scaling:
        return max_position
    return max(max_position, int(scaling["original_max_position_embeddings"] * scaling["factor"]))
