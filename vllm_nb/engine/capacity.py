"""How large an engine's buffers are."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Capacity:
    """Sizes the runner's buffers are made for; see EngineConfig for their meaning."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_logits: int
    block_size: int
    num_blocks: int
