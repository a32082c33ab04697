"""Names: of tensors, and of the files they lie in.

Canonical names of tensors are Hugging Face's, of a text model: "model.layers.0.self_attn.q_proj.weight".
"""

import re

# GGUF name -> canonical name, without ".weight" and ".bias".
_GGUF_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Gemma has norms on both sides of each block, and llama.cpp's names for them differ in meaning.
_GGUF_LAYER_GEMMA3 = _GGUF_LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")

# The text part of a multimodal Gemma 3: as on the hub, and as newer transformers save it.
_TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def from_gguf(name: str, architecture: str) -> str:
    """The canonical name of a GGUF tensor.

    An unknown tensor keeps its own name, below its layer's if it has one, where the model finds it unused and says so.
    """
    if match := _LAYER.fullmatch(name):
        layer, part, kind = match.groups()
        parts = _GGUF_LAYER_GEMMA3 if architecture == "gemma3" else _GGUF_LAYER
        return f"model.layers.{layer}.{parts.get(part, part)}.{kind}"
    part, _, kind = name.rpartition(".")
    return f"{_GGUF_TOP[part]}.{kind}" if part in _GGUF_TOP else name


def from_hugging_face(name: str) -> str | None:
    """The canonical name of a stored tensor; None if it is not of the text model."""
    for stored, canonical in _TEXT_PREFIXES.items():
        if name.startswith(stored):
            return canonical + name.removeprefix(stored)
    return None if name.startswith(_OTHER_PARTS) else name


def gguf_parts(name: str) -> list[str]:
    """The files that `name` is one of: the parts of a split GGUF in order, or it alone."""
    match = _PART.fullmatch(name)
    if match is None:
        return [name]
    count = int(match["count"])
    return [f"{match['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def gguf_stem(name: str) -> str:
    """A file's name without its suffix and the number of its part."""
    match = _PART.fullmatch(name)
    return match["stem"] if match else name.removesuffix(".gguf")
