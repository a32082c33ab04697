"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, which the configuration carries (attention_bias)."""

from vllm_nb.models.decoder import Decoder, WeightNames, load_decoder
from vllm_nb.models.loader import WeightLoader

NAMES = WeightNames()


def load(loader: WeightLoader) -> Decoder:
    return load_decoder(loader, NAMES)
