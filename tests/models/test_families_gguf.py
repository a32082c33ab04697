"""Each family from a GGUF file made the way llama.cpp's conversion makes it: logits against transformers."""

from itertools import cycle
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import quants
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (61, 3, 40)
SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}

CONFIGS = {
    "llama": LlamaConfig(**SIZES | {"hidden_size": 96}, **HEADS, tie_word_embeddings=True),
    "llama-rope-llama3": LlamaConfig(
        **SIZES | {"hidden_size": 96}, **HEADS, rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3}
    ),
    "llama-rope-yarn": LlamaConfig(
        **SIZES | {"hidden_size": 96}, **HEADS, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, **YARN}
    ),
    "mistral": MistralConfig(**SIZES, **HEADS, sliding_window=20),
    "qwen2": Qwen2Config(**SIZES | {"num_attention_heads": 2, "num_key_value_heads": 1}, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, **HEADS),
    "gemma3": Gemma3TextConfig(
        **SIZES | {"hidden_size": 96, "num_hidden_layers": 7}, **HEADS, sliding_window=16, query_pre_attn_scalar=64
    ),
}
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}


def quantize_in_place(model: PreTrainedModel, types: list[Type]) -> dict[str, Type]:
    """Round each matrix to a type of `types`, in turn. Returns the type of each, by name."""
    kinds = {}
    with torch.no_grad():
        for (name, parameter), kind in zip(model.named_parameters(), cycle(types), strict=False):
            if parameter.ndim == 2:
                blocks = quants.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(quants.dequantize(blocks, kind)))
                kinds[name] = kind
    return kinds


def write_gguf(model: PreTrainedModel, path: Path, kinds: dict[str, Type]) -> None:
    c = model.config
    architecture = ARCHITECTURES[c.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    write_sizes(writer, c)
    number = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, c.num_hidden_layers)
    for name, parameter in model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        values = parameter.detach()
        if architecture == "gemma3" and stem.endswith("norm"):
            values = values + 1
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            values = interleave(values, c.head_dim)
        kind = kinds.get(name, Type.F32)
        stored = values.numpy() if kind == Type.F32 else quants.quantize(values.numpy(), kind)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave(values: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of each head from (0 .. D/2, D/2 .. D) to (0, D/2, 1, D/2 + 1, ...), as llama.cpp turns pairs."""
    return values.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def write_sizes(writer: gguf.GGUFWriter, c) -> None:
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if getattr(c, "sliding_window", None):
        writer.add_sliding_window(c.sliding_window)
    if rope["rope_type"] == "llama3":
        stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](c, torch.device("cpu"))
        plain = rope["rope_theta"] ** -(torch.arange(0, head_dim, 2).double() / head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / stretched).float().numpy())
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


@pytest.mark.parametrize("types", [[Type.F32], [Type.Q8_0, Type.Q4_1, Type.Q5_0]], ids=["F32", "mixed"])
@pytest.mark.parametrize("family", CONFIGS)
def test_logits_from_gguf(family, types, tmp_path, random_model, open_model, paged_run):
    """Parts of one product (q, k and v; gate and up) differ in type in the second run."""
    theirs = random_model(CONFIGS[family])
    path = tmp_path / "model.gguf"
    write_gguf(theirs, path, quantize_in_place(theirs, types))
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(0, SIZES["vocab_size"], (n,), generator=generator) for n in LENGTHS]
    with torch.inference_mode():
        expected = [theirs(ids[None]).logits[0] for ids in tokens]

    run = paged_run(open_model(path), LENGTHS)
    first = run.step({row: ids[:30].tolist() for row, ids in enumerate(tokens)})
    second = run.step({row: ids[30:].tolist() for row, ids in enumerate(tokens) if len(ids) > 30})
    for row, logits in enumerate(expected):
        ours = torch.cat([step[row] for step in (first, second) if row in step])
        assert (ours - logits).abs().max() <= 1e-4
