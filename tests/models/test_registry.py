"""Loading: what is counted and reported, and what is refused with which message."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, Qwen2Config

from vllm_nb import progress
from vllm_nb.errors import ModelLoadError
from vllm_nb.models import registry

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


@pytest.fixture
def folder(tmp_path, random_model) -> Path:
    random_model(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    return tmp_path


def edit_tensors(folder: Path, edit) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_weight_bytes_are_those_of_the_file(folder, open_model):
    numbers = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert open_model(folder).weight_bytes == 4 * numbers
    half = open_model(folder, torch.bfloat16).weight_bytes
    norms = 5 * SIZES["hidden_size"]  # kept in float32
    assert half == 2 * numbers + 2 * norms


@pytest.mark.parametrize("stored_twice", [False, True])
def test_tied_embeddings_are_held_once(tmp_path, random_model, open_model, stored_twice):
    theirs = random_model(LlamaConfig(**SIZES, tie_word_embeddings=True))
    theirs.save_pretrained(tmp_path)
    if stored_twice:
        edit_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert open_model(tmp_path).weight_bytes == 4 * sum(p.numel() for p in theirs.parameters())


def test_progress_counts_tensors(folder, open_model):
    reports = []
    remove = progress.add_sink(reports.append)
    try:
        open_model(folder)
    finally:
        remove()
    loading = [report for report in reports if report.phase == "Loading weights"]
    assert loading[0].unit == "tensors"
    assert loading[0].done == 0
    assert loading[-1].finished
    assert loading[-1].done == loading[-1].total == len(load_file(folder / "model.safetensors"))


def test_missing_tensor_is_named(folder, open_model):
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(
        ModelLoadError, match=r"Tensor model\.layers\.1\.mlp\.up_proj\.weight is missing in .*: the file"
    ):
        open_model(folder)


def test_missing_head_is_named(folder, open_model):
    edit_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ModelLoadError, match=r"lm_head\.weight is missing"):
        open_model(folder)


def test_wrong_shape_is_named(folder, open_model):
    edit_config(folder, intermediate_size=25)
    with pytest.raises(
        ModelLoadError, match=r"gate_proj\.weight in .* has the shape \[24, 16\], .* asks for \[25, 16\]"
    ):
        open_model(folder)


def test_tensor_without_use_is_named(tmp_path, random_model, open_model):
    """A Qwen2 relabelled as Llama would lose its biases and answer nonsense."""
    random_model(Qwen2Config(**SIZES)).save_pretrained(tmp_path)
    edit_config(tmp_path, model_type="llama", architectures=["LlamaForCausalLM"])
    expected = r"has no use for: model\.layers\.0\.self_attn\.k_proj\.bias, .* and 3 more"
    with pytest.raises(ModelLoadError, match=expected):
        open_model(tmp_path)


def test_unused_rotary_buffers_of_old_files_are_ignored(folder, open_model):
    edit_tensors(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    open_model(folder)


def test_unknown_architecture_lists_what_is_supported(folder, open_model):
    edit_config(folder, model_type="mamba")
    with pytest.raises(ModelLoadError, match=r"'mamba'.* is not supported; supported are .*llama"):
        open_model(folder)


def test_context_beyond_dynamic_scaling_is_refused(tmp_path, random_model, open_model):
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    random_model(LlamaConfig(**SIZES, rope_parameters=scaling)).save_pretrained(tmp_path)
    open_model(tmp_path, max_len=64)
    with pytest.raises(ModelLoadError, match="up to the 64 tokens"):
        open_model(tmp_path, max_len=65)


def test_registered_architectures():
    assert registry.SUPPORTED == ("llama", "qwen2", "qwen3", "gemma3")
