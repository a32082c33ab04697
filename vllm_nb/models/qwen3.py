"""Qwen3: Llama with a norm on each head of q and k, before the rotary embedding."""

from vllm_nb.models.decoder import Decoder, WeightNames, load_decoder
from vllm_nb.models.loader import WeightLoader

NAMES = WeightNames(q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")


def load(loader: WeightLoader) -> Decoder:
    return load_decoder(loader, NAMES)
