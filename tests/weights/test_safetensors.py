"""Folders as Hugging Face lays them out: tensors and configuration against transformers, and damaged ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from vllm_nb.errors import ModelLoadError
from vllm_nb.weights.checkpoint import open_checkpoint


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama to damage."""
    for file in tiny_llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None takes one away."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_tensors_are_what_transformers_loads(tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(tiny_folder)
    expected = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).state_dict()
    if checkpoint.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert checkpoint.names() == expected.keys()
    for name, tensor in expected.items():
        factor = tensor + 1 if checkpoint.config.architecture == "gemma3" and "norm" in name else tensor
        assert torch.equal(checkpoint.tensor(name), factor), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_as_it_is(dtype: torch.dtype, folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    assert open_checkpoint(folder).tensor("model.embed_tokens.weight").dtype == dtype


def test_gemmas_norms_are_exact_in_bfloat16(tmp_path: Path, save_model: Callable[..., Path]) -> None:
    """1 + w needs more bits than bfloat16 has."""
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16,
    )  # fmt: skip
    path = save_model(config, tmp_path) / "model.safetensors"
    stored = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}
    save_file(stored, path)
    checkpoint = open_checkpoint(tmp_path)
    for name in ("model.norm.weight", "model.layers.0.self_attn.q_norm.weight"):
        assert torch.equal(checkpoint.tensor(name), stored[name].double().add(1).float())
    assert checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").dtype == torch.bfloat16


def test_shards(folder: Path, tiny_llama: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).save_pretrained(folder, max_shard_size="50KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    sharded, whole = open_checkpoint(folder), open_checkpoint(tiny_llama)
    assert sharded.names() == whole.names()
    for name in whole.names():
        assert torch.equal(sharded.tensor(name), whole.tensor(name))
    next(folder.glob("model-00002-*")).unlink()
    with pytest.raises(ModelLoadError, match=r"lacks 1 of \d+ files of weights: model-00002-of-"):
        open_checkpoint(folder)


TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
}


@pytest.mark.parametrize("layout", ["hub", "new"])
def test_the_text_part_of_a_multimodal_gemma3(layout: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Gemma3Config(text_config=dict(TEXT), vision_config=VISION | {"patch_size": 14}, eos_token_id=[1, 106])
    model = Gemma3ForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    if layout == "new":
        new = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
        assert any(name.startswith("model.language_model.") for name in new)
        save_file({name: tensor.contiguous() for name, tensor in new.items()}, path)
    else:
        assert any(name.startswith("language_model.model.") for name in stored)
    checkpoint = open_checkpoint(tmp_path)
    expected = model.model.language_model.state_dict()
    assert checkpoint.names() == {f"model.{name}" for name in expected}
    for name, tensor in expected.items():
        factor = tensor + 1 if "norm" in name else tensor
        assert torch.equal(checkpoint.tensor(f"model.{name}"), factor), name
    assert checkpoint.config.architecture == "gemma3"
    assert checkpoint.config.hidden_size == 32
    assert checkpoint.config.tie_word_embeddings
    assert checkpoint.generation.eos_token_ids == (1, 106)


def test_chat_templates(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.chat_template() is None
    tokenizer = folder / "tokenizer_config.json"
    tokenizer.write_text(json.dumps({"chat_template": "one"}))
    assert checkpoint.chat_template() == "one"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "two"}]
    tokenizer.write_text(json.dumps({"chat_template": named}))
    assert checkpoint.chat_template() == "two"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "three"}))
    assert checkpoint.chat_template() == "three"
    (folder / "chat_template.jinja").write_text("{{ 'vier ä' }}", encoding="utf-8")
    assert checkpoint.chat_template() == "{{ 'vier ä' }}"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelLoadError, match=r"chat_template\.jinja cannot be read"):
        checkpoint.chat_template()


def test_names_for_people(tiny_llama: Path, tmp_path: Path) -> None:
    cached = tmp_path / "models--org--Tiny-1B" / "snapshots" / "0123abcd"
    cached.parent.mkdir(parents=True)
    cached.mkdir()
    for file in tiny_llama.iterdir():
        (cached / file.name).symlink_to(file)
    assert open_checkpoint(cached).name == "Tiny-1B"
    assert open_checkpoint(tiny_llama).name == tiny_llama.name


def test_generation_config(folder: Path) -> None:
    path = folder / "generation_config.json"
    path.unlink(missing_ok=True)
    assert open_checkpoint(folder).generation.eos_token_ids == (2, 5)  # config.json's
    path.write_text(json.dumps({"eos_token_id": 7, "temperature": 0.6, "top_k": 20, "top_p": 1, "transformers": "x"}))
    generation = open_checkpoint(folder).generation
    assert generation.eos_token_ids == (7,)
    assert generation.sampling == {"temperature": 0.6, "top_k": 20, "top_p": 1.0}
    path.write_text(json.dumps({"do_sample": False, "temperature": 0.6}))
    assert open_checkpoint(folder).generation.sampling == {"temperature": 0.0}


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"temperature": "hot"}, r"'temperature' in .*generation_config\.json must be a number, not 'hot'"),
        ({"top_p": 1.5}, r"advice in .*generation_config\.json is out of range: top_p .* 1\.5"),
        ({"eos_token_id": ["a"]}, r"'eos_token_id' in .*generation_config\.json must be a token id"),
    ],
)
def test_faults_in_generation_config(generation: dict[str, Any], message: str, folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps(generation))
    with pytest.raises(ModelLoadError, match=message):
        open_checkpoint(folder)


def test_folders_that_are_no_model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ModelLoadError, match=r"has no config\.json: it is not the folder of a model"):
        open_checkpoint(tmp_path_factory.mktemp("empty"))
    with pytest.raises(ModelLoadError, match=r"model\.safetensors holds tensors alone; give its folder"):
        open_checkpoint(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(
        ModelLoadError, match=r"no weights: neither model\.safetensors nor .*There is weights\.safetensors"
    ):
        open_checkpoint(folder)
    (folder / "weights.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"Pickled weights .* can run code when loaded and are not read"):
        open_checkpoint(folder)


def test_weights_of_other_types(folder: Path) -> None:
    path = folder / "model.safetensors"
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(load_file(path) | {name: torch.zeros(64, 64, dtype=torch.float8_e4m3fn)}, path)
    with pytest.raises(ModelLoadError, match=rf"{name}' in .* of the type F8_E4M3, which is not supported yet"):
        open_checkpoint(folder).tensor(name)
    with pytest.raises(ModelLoadError, match="There is no tensor 'nothing' in"):
        open_checkpoint(folder).tensor("nothing")
    for method in ("fp8", "gptq", "awq", "bitsandbytes"):
        edit(folder / "config.json", quantization_config={"quant_method": method})
        with pytest.raises(ModelLoadError, match=rf"weights are quantised \({method}\), which is not supported yet"):
            open_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"[" * 100_000, b'"\xff"', b"9" * 10_000])
def test_damaged_json(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"config\.json (is not valid JSON|must hold a JSON object)"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "'weight_map' in .* is missing"),
        ({"weight_map": []}, "'weight_map' in .* must be an object"),
        ({"weight_map": {"w": "../../secret.safetensors"}}, "names of files in its folder"),
        ({"weight_map": {"w": "other.safetensors"}}, r"lacks 1 of 1 files of weights: other\.safetensors"),
        ({"weight_map": {}}, "lacks 0 of 0 files"),
    ],
)
def test_damaged_index(index: dict[str, Any], message: str, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=message):
        open_checkpoint(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=6),
    end=st.integers(0, 200_000) | st.none(),
)
def test_random_damage_never_crashes(
    changes: list[tuple[int, int]], end: int | None, folder: Path, tiny_llama: Path
) -> None:
    content = bytearray((tiny_llama / "model.safetensors").read_bytes())
    for position, value in changes:
        content[position] = value
    (folder / "model.safetensors").unlink(missing_ok=True)  # the last one may still be mapped
    (folder / "model.safetensors").write_bytes(content[:end])
    try:
        checkpoint = open_checkpoint(folder)
        for name in checkpoint.names():
            checkpoint.tensor(name)
    except ModelLoadError:
        return
    checkpoint.close()
