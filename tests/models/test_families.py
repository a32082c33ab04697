"""Each family with random tiny weights, saved and opened as safetensors: logits against transformers in float32."""

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.masking_utils import eager_mask
from transformers.models.gemma3.modeling_gemma3 import eager_attention_forward

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (1, 33, 7, 71, 48)  # tokens of the sequences: over and on the borders of blocks of 16, one alone
SIZES = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def heads(num_heads: int, num_kv_heads: int, head_dim: int) -> dict[str, int]:
    return {"num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads, "head_dim": head_dim}


def rope(kind: str, **values: float) -> dict:
    return {"rope_type": kind, "rope_theta": 10000.0, **values}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=32)

CONFIGS = {
    "llama": LlamaConfig(**SIZES, **heads(4, 4, 16), tie_word_embeddings=True),
    "llama-group4": LlamaConfig(**SIZES, **heads(8, 2, 64)),
    "llama-group7-biases": LlamaConfig(**SIZES | {"hidden_size": 56}, **heads(7, 1, 80), attention_bias=True),
    "llama-mlp-bias": LlamaConfig(**SIZES, **heads(2, 1, 96), mlp_bias=True, tie_word_embeddings=True),
    "llama-rope-llama3": LlamaConfig(**SIZES, **heads(4, 2, 64), rope_parameters=LLAMA3),
    "llama-rope-yarn": LlamaConfig(**SIZES, **heads(4, 2, 64), rope_parameters=YARN),
    "llama-rope-linear": LlamaConfig(**SIZES, **heads(4, 2, 64), rope_parameters=rope("linear", factor=2.0)),
    "llama-rope-dynamic": LlamaConfig(**SIZES, **heads(4, 2, 64), rope_parameters=rope("dynamic", factor=2.0)),
    "mistral": MistralConfig(**SIZES, **heads(4, 1, 96), sliding_window=20),
    "mistral-without-window": MistralConfig(**SIZES, **heads(4, 2, 32), sliding_window=None),
    "qwen2": Qwen2Config(**SIZES | {"hidden_size": 56}, num_attention_heads=7, num_key_value_heads=1),
    "qwen2-windows": Qwen2Config(
        **SIZES,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=17,
        max_window_layers=1,
        tie_word_embeddings=True,
    ),
    "qwen3": Qwen3Config(**SIZES | {"hidden_size": 66}, **heads(6, 2, 80)),
    "qwen3-tied-bias": Qwen3Config(**SIZES, **heads(4, 4, 96), attention_bias=True, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(
        **SIZES,
        **heads(4, 1, 32),
        sliding_window=18,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=20,
    ),
    "gemma3-softcaps": Gemma3TextConfig(
        **SIZES | {"hidden_size": 60, "num_hidden_layers": 7},
        **heads(3, 1, 80),
        sliding_window=16,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=2.0,
        tie_word_embeddings=False,
        rope_parameters={
            "full_attention": rope("linear", factor=4.0) | {"rope_theta": 1e6},
            "sliding_attention": rope("default") | {"rope_theta": 5e3},
        },
    ),
}


def attention_with_softcap(module, query, key, value, attention_mask, **kwargs):
    """transformers has this argument and its Gemma 3 does not pass it, although its configuration has the field."""
    return eager_attention_forward(
        module, query, key, value, attention_mask, softcap=module.config.attn_logit_softcapping, **kwargs
    )


AttentionInterface.register("eager_with_softcap", attention_with_softcap)
AttentionMaskInterface.register("eager_with_softcap", eager_mask)


@pytest.fixture(scope="module", params=CONFIGS)
def family(request, tmp_path_factory, random_model):
    """(folder, token ids of the sequences, their logits by transformers)."""
    theirs = random_model(CONFIGS[request.param])
    if getattr(theirs.config, "attn_logit_softcapping", None):
        theirs.set_attn_implementation("eager_with_softcap")
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(0, SIZES["vocab_size"], (n,), generator=generator).tolist() for n in LENGTHS]
    with torch.inference_mode():
        logits = [theirs(torch.tensor([ids])).logits[0] for ids in tokens]
    assert torch.cat(logits).std() > 0.3  # else the tolerance would mean nothing
    return folder, tokens, logits


def worst(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def test_prefill_at_once(family, open_model, paged_run):
    folder, tokens, expected = family
    run = paged_run(open_model(folder), LENGTHS)
    logits = run.step(dict(enumerate(tokens)))
    assert worst(list(logits.values()), expected) <= 1e-4


@pytest.mark.parametrize("seed", [0, 1])
def test_chunked_prefill_and_decode_mixed(family, open_model, paged_run, seed):
    """Every step takes some sequences, in any order, each with a chunk of any size, often a single token."""
    folder, tokens, expected = family
    run = paged_run(open_model(folder), LENGTHS, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    pieces = [[] for _ in LENGTHS]
    while unfinished := [row for row, ids in enumerate(tokens) if run.lengths[row] < len(ids)]:
        order = torch.randperm(len(unfinished), generator=generator)
        count = int(torch.randint(1, len(unfinished) + 1, (), generator=generator))
        chunks = {}
        for row in (unfinished[i] for i in order[:count]):
            size = (1, 1, 2, 5, 16, 30)[torch.randint(0, 6, (), generator=generator)]
            chunks[row] = tokens[row][run.lengths[row] :][:size]
        for row, logits in run.step(chunks).items():
            pieces[row].append(logits)
    assert worst([torch.cat(p) for p in pieces], expected) <= 1e-4


def test_decode_one_token_at_a_time(family, open_model, paged_run):
    folder, tokens, expected = family
    run = paged_run(open_model(folder), LENGTHS, seed=2)
    for position in range(max(LENGTHS)):
        chunks = {row: ids[position : position + 1] for row, ids in enumerate(tokens) if position < len(ids)}
        for row, logits in run.step(chunks, last_only=True).items():
            assert worst([logits[0]], [expected[row][position]]) <= 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.5), (torch.float16, 0.06)])
def test_other_types(family, open_model, paged_run, dtype, tolerance):
    folder, tokens, expected = family
    run = paged_run(open_model(folder, dtype), LENGTHS, dtype=dtype)
    logits = list(run.step(dict(enumerate(tokens))).values())
    assert logits[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert worst(logits, expected) <= tolerance
