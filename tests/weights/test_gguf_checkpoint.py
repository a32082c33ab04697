"""GGUF models: configuration and tensors against transformers, and the same model in both formats."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers.modeling_gguf_pytorch_utils as transformers_gguf
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from vllm_nb.kernels.quant import QuantTensor, dequantize
from vllm_nb.weights.checkpoint import open_checkpoint

Reader = Callable[[Path], gguf.GGUFReader]
Write = Callable[..., Path]


@pytest.fixture(scope="module", params=["smollm2_path", "gemma3_path"])
def real(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def theirs(real: Path, gguf_reader: Reader) -> PreTrainedConfig:
    """transformers' configuration. It gets the open reader, because its own takes half a minute."""
    reader = gguf_reader(real)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", lambda _: reader)
        return AutoConfig.from_pretrained(real.parent, gguf_file=real.name)


def test_configuration_of_the_real_models(real: Path, theirs: PreTrainedConfig) -> None:
    checkpoint = open_checkpoint(real)
    ours = checkpoint.config
    assert ours.vocab_size == {"llama": 49152, "gemma3": 262144}[ours.architecture]  # the oracle has a sample of tokens
    assert (ours.hidden_size, ours.intermediate_size, ours.num_layers) == (
        theirs.hidden_size, theirs.intermediate_size, theirs.num_hidden_layers
    )  # fmt: skip
    assert (ours.num_heads, ours.num_kv_heads, ours.head_dim, ours.max_position) == (
        theirs.num_attention_heads, theirs.num_key_value_heads, theirs.head_dim, theirs.max_position_embeddings
    )  # fmt: skip
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert theirs.eos_token_id in checkpoint.generation.eos_token_ids
    assert ours.rope.scaling is None
    if ours.architecture == "gemma3":
        assert ours.rope.theta == theirs.rope_parameters["full_attention"]["rope_theta"]
        assert ours.rope.local_theta == theirs.rope_parameters["sliding_attention"]["rope_theta"]
        assert ours.sliding_window == theirs.sliding_window
        assert ours.sliding_layers == tuple(kind == "sliding_attention" for kind in theirs.layer_types)
        assert (ours.attention_scale or ours.head_dim**-0.5) == theirs.query_pre_attn_scalar**-0.5
        assert ours.activation == "gelu_tanh"
    else:
        assert ours.architecture == theirs.model_type == "llama"
        assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
        assert ours.sliding_window is None
        assert ours.activation == "silu"


def test_tensors_of_the_real_models(real: Path, theirs: PreTrainedConfig, gguf_reader: Reader) -> None:
    """Names, shapes and values as transformers loads them, in the first, a middle and the last layer."""
    reader = gguf_reader(real)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    processor = transformers_gguf.TENSOR_PROCESSORS[gguf_architecture(theirs)](theirs.to_dict())
    name_map = {stored: name for name, stored in gguf_names(model, theirs).items()}
    checkpoint = open_checkpoint(real)
    assert checkpoint.names() == {name_map[tensor.name] for tensor in reader.tensors}
    last = checkpoint.config.num_layers - 1
    for stored in reader.tensors:
        name = name_map[stored.name]
        layer = name.split(".")[2] if ".layers." in name else None
        if layer not in (None, "0", str(last // 2), str(last)) or "embed" in name:
            continue
        values = gguf.dequantize(stored.data, stored.tensor_type)
        expected = np.array(processor.process(weights=values, name=stored.name).weights)
        if checkpoint.config.architecture == "gemma3" and "norm" in name:
            expected = expected + 1  # transformers' models add it when they run
        np.testing.assert_array_equal(dequantize(checkpoint.tensor(name)).numpy(), expected, err_msg=name)


def test_large_tensors_are_views_of_the_file(smollm2_path: Path) -> None:
    checkpoint = open_checkpoint(smollm2_path)
    embedding = checkpoint.tensor("model.embed_tokens.weight")
    assert isinstance(embedding, QuantTensor)
    assert not embedding.data.flags.owndata
    assert not embedding.data.flags.writeable
    assert embedding.data.base is not None


def test_names_for_people(smollm2_path: Path, gemma3_path: Path, tmp_path: Path) -> None:
    assert open_checkpoint(smollm2_path).name == "SmolLM2-135M-Instruct"
    assert open_checkpoint(gemma3_path).name == "gemma-3-270m"
    for file, name in {
        "Qwen3-0.6B-UD-Q4_K_XL.gguf": "Qwen3-0.6B",
        "Llama-3.2-1B.IQ4_NL.gguf": "Llama-3.2-1B",
        "tiny-f16.gguf": "tiny",
        "ggml-model-q4_0.gguf": "Smollm2 135M 8k Lc100K Mix1 Ep2",
    }.items():
        (tmp_path / file).symlink_to(smollm2_path)
        assert open_checkpoint(tmp_path / file).name == name


def test_chat_template_and_end_tokens(smollm2_path: Path, gemma3_path: Path) -> None:
    smollm2, gemma = open_checkpoint(smollm2_path), open_checkpoint(gemma3_path)
    assert "<|im_start|>" in (smollm2.chat_template() or "")
    assert gemma.chat_template() is None
    assert smollm2.generation.eos_token_ids == (2,)  # <|im_end|>
    assert gemma.generation.eos_token_ids == (1, 106)  # <eos>, and <end_of_turn>, which the file does not list
    assert smollm2.generation.sampling == {}


def gguf_architecture(config: PreTrainedConfig) -> str:
    return {"mistral": "llama", "gemma3_text": "gemma3"}.get(config.model_type, config.model_type)


def gguf_names(model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, str]:
    """transformers' names of the parameters a file holds -> gguf-py's."""
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == gguf_architecture(config))
    name_map = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    names = [name for name in model.state_dict() if name != "lm_head.weight" or not config.tie_word_embeddings]
    return {name: name_map.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}


# One model in both formats: gguf-py's names, and the conversion that llama.cpp's scripts do.


def convert(folder: Path, path: Path, write_gguf: Write) -> Path:
    """A tiny safetensors folder as GGUF in float32."""
    config = AutoConfig.from_pretrained(folder)
    architecture = gguf_architecture(config)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    parameters = model.state_dict()
    tensors = {
        stored: converted(parameters[name], name, architecture, config).numpy()
        for name, stored in gguf_names(model, config).items()
    }
    metadata = metadata_of(config, architecture)
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = llama3_factors(rope, config.head_dim)
    return write_gguf(path, architecture, metadata, tensors)


def converted(parameter: torch.Tensor, name: str, architecture: str, config: PreTrainedConfig) -> torch.Tensor:
    if architecture == "gemma3" and "norm" in name:
        return parameter + 1
    if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = parameter.reshape(heads, 2, -1, *parameter.shape[1:])  # of each head
        return halves.swapaxes(1, 2).reshape(parameter.shape)
    return parameter


def metadata_of(config: PreTrainedConfig, architecture: str) -> dict[str, Any]:
    rope = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    metadata = {
        "{arch}.block_count": config.num_hidden_layers,
        "{arch}.context_length": config.max_position_embeddings,
        "{arch}.embedding_length": config.hidden_size,
        "{arch}.feed_forward_length": config.intermediate_size,
        "{arch}.attention.head_count": config.num_attention_heads,
        "{arch}.attention.head_count_kv": config.num_key_value_heads,
        "{arch}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "{arch}.attention.key_length": head_dim,
        "{arch}.attention.value_length": head_dim,
        "{arch}.rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"]),
        "tokenizer.ggml.tokens": ["a", "b"],
    }
    if architecture == "gemma3":
        metadata["{arch}.attention.scale"] = config.query_pre_attn_scalar**-0.5
    if architecture in ("gemma3", "llama") and getattr(config, "sliding_window", None):
        metadata["{arch}.attention.sliding_window"] = config.sliding_window
    return metadata


def llama3_factors(rope: Mapping[str, Any], head_dim: int) -> np.ndarray:
    """What transformers divides each frequency by."""
    config = transformers_llama_config(rope, head_dim)
    scaled, _ = transformers_rope("llama3")(config, device=torch.device("cpu"))
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return (plain / scaled).numpy()


def transformers_llama_config(rope: Mapping[str, Any], head_dim: int) -> PreTrainedConfig:
    from transformers import LlamaConfig

    return LlamaConfig(rope_parameters=dict(rope), head_dim=head_dim)


def transformers_rope(kind: str) -> Callable[..., Any]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return ROPE_INIT_FUNCTIONS[kind]


def test_both_formats_hold_the_same_model(tiny_folder: Path, tmp_path: Path, write_gguf: Write) -> None:
    folder = open_checkpoint(tiny_folder)
    file = open_checkpoint(convert(tiny_folder, tmp_path / "tiny.gguf", write_gguf))
    assert folder.names() == file.names()
    for name in folder.names():
        torch.testing.assert_close(dequantize(file.tensor(name)), dequantize(folder.tensor(name)), rtol=0, atol=0)
    ours, theirs = file.config, folder.config
    assert ours.rms_norm_eps == pytest.approx(theirs.rms_norm_eps)  # float32 in GGUF
    assert (ours.attention_scale or ours.head_dim**-0.5) == pytest.approx(
        theirs.attention_scale or theirs.head_dim**-0.5
    )
    assert same_frequencies(ours, theirs)
    same = {"rms_norm_eps": 0, "attention_scale": None, "rope": theirs.rope}
    assert replace(ours, **same) == replace(theirs, **same)


def same_frequencies(ours: Any, theirs: Any) -> bool:
    """Llama 3's scaling comes as factors in GGUF: compare what they make of the frequencies."""
    from vllm_nb.layers.rotary import cos_sin_table

    tables = [
        cos_sin_table(
            config.rope.theta, config.head_dim, 200, scaling=config.rope.scaling, max_position=config.max_position,
            device=torch.device("cpu"),
        )
        for config in (ours, theirs)
    ]  # fmt: skip
    return torch.allclose(*tables, atol=1e-4) and ours.rope.local_theta == theirs.rope.local_theta


def test_quantised_rows_are_put_back_in_order(
    tmp_path: Path, write_gguf: Write, llama_metadata: dict[str, Any], llama_tensors: dict[str, np.ndarray]
) -> None:
    """q and k in Q8_0: the blocks of each row stay as they are, the rows move as transformers moves them."""
    plain = llama_tensors["blk.0.attn_q.weight"]
    blocks = gguf.quants.quantize(plain, gguf.GGMLQuantizationType.Q8_0)
    tensors = llama_tensors | {"blk.0.attn_q.weight": ("Q8_0", blocks)}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "q.gguf", "llama", llama_metadata, tensors))
    ours = checkpoint.tensor("model.layers.0.self_attn.q_proj.weight")
    assert isinstance(ours, QuantTensor)
    processor = transformers_gguf.LlamaTensorProcessor({"num_attention_heads": 4, "num_key_value_heads": 2})
    np.testing.assert_array_equal(ours.data, processor.process(blocks, "blk.0.attn_q.weight").weights)


def test_partial_rotary_of_llama_pairs_as_llama_cpp_does(
    tmp_path: Path, write_gguf: Write, llama_metadata: dict[str, Any], llama_tensors: dict[str, np.ndarray]
) -> None:
    """llama.cpp turns the pairs (0,1), (2,3), ... of the first 8 of 16 dimensions; ours the pairs (0,4), (1,5), ..."""
    metadata = llama_metadata | {"{arch}.rope.dimension_count": 8}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "p.gguf", "llama", metadata, llama_tensors))
    assert checkpoint.config.rope.rotary_dim == 8
    ours = dequantize(checkpoint.tensor("model.layers.0.self_attn.k_proj.weight")).numpy().reshape(2, 16, 64)
    stored = llama_tensors["blk.0.attn_k.weight"].reshape(2, 16, 64)
    for pair in range(4):
        np.testing.assert_array_equal(ours[:, pair], stored[:, 2 * pair])
        np.testing.assert_array_equal(ours[:, pair + 4], stored[:, 2 * pair + 1])
    np.testing.assert_array_equal(ours[:, 8:], stored[:, 8:])
