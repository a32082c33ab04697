"""Llama 2 and 3, and what is built like them: Mistral (sliding window on every layer), SmolLM2, TinyLlama."""

from vllm_nb.models.decoder import Decoder, WeightNames, load_decoder
from vllm_nb.models.loader import WeightLoader

NAMES = WeightNames()


def load(loader: WeightLoader) -> Decoder:
    return load_decoder(loader, NAMES)
