"""A GGUF file of a real shape with random weights, to measure speed on: a step's time does not depend on what they say.
The tokenizer is that of an installed model.

python scripts/random_gguf.py OUT.gguf --architecture qwen3 --head-dim 128 --types Q4_K_M
"""

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants

from vllm_nb.kernels.quant import BLOCK_SIZES
from vllm_nb.weights.config_gguf import ARCHITECTURES
from vllm_nb.weights.gguf import GgufFile
from vllm_nb.weights.hub import ModelRepo, resolve

FLOATS = ("F32", "F16", "BF16")
# mixes, nearly as llama.cpp makes them: the type of most matrices; of others in most layers, and where more bits pay
MIXES = {
    "Q2_K": ("Q2_K", dict.fromkeys(("attn_v", "attn_output", "ffn_down"), ("Q3_K", "Q3_K"))),
    "Q3_K_M": ("Q3_K", {"attn_v": ("Q4_K", "Q4_K"), "attn_output": ("Q4_K", "Q4_K"), "ffn_down": ("Q3_K", "Q4_K")}),
    "Q4_K_M": ("Q4_K", dict.fromkeys(("attn_v", "ffn_down"), ("Q4_K", "Q6_K"))),
    "Q5_K_M": ("Q5_K", dict.fromkeys(("attn_v", "ffn_down"), ("Q5_K", "Q6_K"))),
}
TYPES = [*MIXES, *(kind for kind in BLOCK_SIZES if kind not in ("Q2_K", "Q3_K", "Q4_K", "Q5_K"))]
# what llama.cpp takes for rows that are no multiple of 256; F16 for those that are none of 32
FALLBACKS = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# where a block's float16 factors lie (ggml-common.h), as multiples of the scale: minima that bring the mean to zero
FACTORS = {
    "Q2_K": {80: 1.0, 82: 1.5},
    "Q3_K": {108: 1.0},
    "Q4_0": {0: 1.0},
    "Q4_1": {0: 1.0, 2: -7.5},
    "Q4_K": {0: 1.0, 2: 7.5},
    "IQ4_NL": {0: 1.0},
    "Q5_0": {0: 1.0},
    "Q5_1": {0: 1.0, 2: -15.5},
    "Q5_K": {0: 1.0, 2: 15.5},
    "Q6_K": {208: 1.0},
    "Q8_0": {0: 1.0},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("path", type=Path, metavar="OUT.gguf")
    options.add_argument("--architecture", choices=ARCHITECTURES, default="llama")
    options.add_argument("--types", choices=TYPES, default="Q4_K_M", help="one type, or a mix as llama.cpp makes it")
    sizes = {"layers": 12, "hidden": 1024, "heads": 16, "kv-heads": 8, "head-dim": 64, "intermediate": 3072}
    for name, size in sizes.items():
        options.add_argument(f"--{name}", type=int, default=size)
    options.add_argument("--tokenizer", default="smollm2", metavar="MODEL", help="a GGUF model to take it from")
    write(options.parse_args())


def write(shape: argparse.Namespace) -> None:
    """shape: what `main` parses."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(shape.path, shape.architecture)
    tokenizer = GgufFile(resolve(ModelRepo.parse(shape.tokenizer))).metadata
    _write_sizes(writer, shape)
    for key, value in tokenizer.items():
        if key.startswith("tokenizer."):
            _add(writer, key, value)
    for name, size in _vectors(shape).items():
        values = rng.normal(0 if name.endswith("bias") else 1, 0.02, size)
        writer.add_tensor(name, values.astype(np.float32))
    for name, (rows, columns) in _matrices(shape, len(tokenizer["tokenizer.ggml.tokens"])).items():
        kind = fitting(tensor_type(shape.types, name, shape.layers), columns)
        data = random_matrix(kind, rows, columns, rng)
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_type(mix: str, name: str, layers: int) -> str:
    """The type that a matrix has in a mix. The embedding is also the head."""
    base, others = MIXES.get(mix, (mix, {}))
    if name == "token_embd.weight":
        return base if base in (*FLOATS, "Q8_0") else "Q6_K"
    _, number, part, _ = name.split(".")
    layer, eighth = int(number), layers // 8
    more_bits = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    return others.get(part, (base, base))[more_bits]


def fitting(kind: str, columns: int) -> str:
    """That type, or the one that llama.cpp takes where a row is no whole number of its blocks."""
    if columns % BLOCK_SIZES[kind][0] == 0:
        return kind
    kind = FALLBACKS.get(kind, "F16")
    return kind if columns % BLOCK_SIZES[kind][0] == 0 else "F16"


def random_matrix(kind: str, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Values around zero, small enough that activations stay near 1; of quantised types their blocks [rows, bytes]."""
    deviation = columns**-0.5
    if kind in FLOATS:
        values = rng.standard_normal((rows, columns), np.float32) * np.float32(deviation)
        return quants.quantize(values, GGMLQuantizationType[kind])
    block, size = BLOCK_SIZES[kind]
    raw = np.frombuffer(rng.bytes(rows * columns // block * size), np.uint8).reshape(rows, -1, size).copy()
    _set_factors(kind, raw, 1.0)
    sample = quants.dequantize(raw[:1024].reshape(-1, raw.shape[1] * size), GGMLQuantizationType[kind])
    _set_factors(kind, raw, deviation / float(sample.std()))
    return raw.reshape(rows, -1)


def _set_factors(kind: str, raw: np.ndarray, scale: float) -> None:
    for at, multiple in FACTORS[kind].items():
        raw[..., at : at + 2] = np.array([scale * multiple], np.float16).view(np.uint8)


def _matrices(shape: argparse.Namespace, vocabulary: int) -> dict[str, tuple[int, int]]:
    q, kv, hidden, wide = (
        shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.hidden, shape.intermediate
    )  # fmt: skip
    layer = {
        "attn_q": (q, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_output": (hidden, q),
        "ffn_gate": (wide, hidden),
        "ffn_up": (wide, hidden),
        "ffn_down": (hidden, wide),
    }
    return {"token_embd.weight": (vocabulary, hidden)} | _in_layers(shape, layer, "weight")


def _vectors(shape: argparse.Namespace) -> dict[str, int]:
    """Norms and biases, by architecture."""
    sizes = {"attn_norm": shape.hidden, "ffn_norm": shape.hidden}
    if shape.architecture in ("qwen3", "gemma3"):
        sizes |= {"attn_q_norm": shape.head_dim, "attn_k_norm": shape.head_dim}
    if shape.architecture == "gemma3":
        sizes |= {"post_attention_norm": shape.hidden, "post_ffw_norm": shape.hidden}
    vectors = {"output_norm.weight": shape.hidden} | _in_layers(shape, sizes, "weight")
    if shape.architecture == "qwen2":
        heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads, "attn_v": shape.kv_heads}
        biases = {name: count * shape.head_dim for name, count in heads.items()}
        vectors |= _in_layers(shape, biases, "bias")
    return vectors


def _in_layers(shape: argparse.Namespace, sizes: dict[str, Any], suffix: str) -> dict[str, Any]:
    return {f"blk.{n}.{name}.{suffix}": size for n in range(shape.layers) for name, size in sizes.items()}


def _write_sizes(writer: GGUFWriter, shape: argparse.Namespace) -> None:
    writer.add_name(shape.path.stem)
    writer.add_block_count(shape.layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    if shape.architecture == "gemma3":
        writer.add_sliding_window(512)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
    writer.add_key_value(key, value, kind)


if __name__ == "__main__":
    main()
