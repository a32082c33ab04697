"""Gemma 3, text: norms before and after each block and on the heads of q and k, scaled embeddings.

In the configuration: sliding windows on most layers with a rotary base of their own, GeGLU, attention scale, softcaps.
"""

import torch

from vllm_nb.models.decoder import Decoder, WeightNames, load_decoder
from vllm_nb.models.loader import WeightLoader

NAMES = WeightNames(
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    attention_output_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_output_norm="post_feedforward_layernorm",
)


def load(loader: WeightLoader) -> Decoder:
    # Rounded to the model's type, as in training: sqrt(640) is 25.25 in bfloat16.
    scale = torch.tensor(loader.config.hidden_size**0.5, dtype=torch.float64).to(loader.dtype).item()
    return load_decoder(loader, NAMES, embedding_scale=scale)
