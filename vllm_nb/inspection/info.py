"""What does not change about an engine while it runs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """Sizes in tokens, blocks and bytes, as their names say."""

    model: str
    version: str  # of vllm_nb
    device: str
    backend: str  # kernels
    dtype: str  # of activations
    kv_dtype: str
    num_layers: int
    vocab_size: int
    block_size: int
    num_blocks: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    prefix_cache: bool
    weight_bytes: int
    step_weight_bytes: int  # of those that a step reads: an embedding of its own is not
    kv_bytes: int  # of the whole KV cache
    sliding_window: int | None = None  # tokens that a sliding layer reads, the current one included
    sliding_layers: tuple[bool, ...] | None = None  # per layer; None: all, when there is a window
    read_rate: float | None = None  # bytes a second from memory, once it was measured
    memory: dict[str, Any] | None = None  # predicted and measured once loaded, as Observed.memory gives it
    wall_clock: float = 0.0  # add to a time of the engine's clock to get seconds since the epoch

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From plain data; names it does not know are left out. Raises TypeError when one is missing."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        if known.get("sliding_layers") is not None:
            known["sliding_layers"] = tuple(known["sliding_layers"])
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
