"""How large an engine's buffers are."""

from dataclasses import dataclass

from vllm_nb.config import EngineConfig


@dataclass(frozen=True)
class Capacity:
    """Sizes the runner's buffers are made for; see EngineConfig for their meaning."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_logits: int
    block_size: int
    num_blocks: int


def longer_context(config: EngineConfig, context: int, max_position: int) -> str:
    """What to do about a prompt that does not fit into `context` tokens: it depends on what set that limit.

    max_position: the longest context the model was made for, or has been stretched to.
    """
    if context >= max_position:
        return "shorten it, for this model was made for no more (yarn_factor stretches that)"
    setting = "max_model_len" if config.max_model_len else "KV cache (num_kv_blocks, kv_fraction)"
    return f"shorten it, or start the engine with a larger {setting}"
