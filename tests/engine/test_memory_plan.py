"""The memory that is predicted from headers is what a loaded engine has."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from vllm_nb.api import Engine
from vllm_nb.client.plan import plan_memory
from vllm_nb.config import EngineConfig
from vllm_nb.engine.build import predict_memory
from vllm_nb.errors import ModelLoadError
from vllm_nb.weights.checkpoint import open_checkpoint

CONFIGS = {
    "cpu": EngineConfig(num_kv_blocks=64, max_num_seqs=8),
    "cpu, bfloat16": EngineConfig(num_kv_blocks=64, max_num_seqs=8, dtype="bfloat16"),
    "cpu, float32": EngineConfig(num_kv_blocks=64, dtype="float32", block_size=32),
    "reference": EngineConfig(num_kv_blocks=64, backend="reference", block_size=4, max_model_len=100),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_random_folder_takes_what_was_predicted(tiny_model_path: Path, config: EngineConfig) -> None:
    with Engine(tiny_model_path, config) as engine:
        memory = engine.memory()
        runner = engine._loop.call(lambda core: core.runner)
        assert memory["measured"]["use"]["weights"] == runner.model.weight_bytes
        assert memory["measured"]["use"]["kv"] == sum(cache.nbytes for cache in runner.kv)
    predicted, measured = (memory[kind]["use"] for kind in ("predicted", "measured"))
    assert predicted["weights"] == measured["weights"]
    assert predicted["kv"] == measured["kv"]


def test_a_quantised_file_takes_what_was_predicted(smollm2_path: Path) -> None:
    with Engine(smollm2_path, EngineConfig(max_model_len=1024, num_kv_blocks=128)) as engine:
        memory = engine.memory()
    predicted, measured = (memory[kind]["use"] for kind in ("predicted", "measured"))
    assert (predicted["weights"], predicted["kv"]) == (measured["weights"], measured["kv"])
    assert predicted["activations"] == pytest.approx(measured["activations"], rel=0.1)
    assert memory["measured"]["estimated"] == []
    device = memory["measured"]["device"]
    assert device["total"] == psutil.virtual_memory().total
    assert 0 < device["runtime"] < memory["measured"]["resident"] < device["total"]


def test_other_dtypes_are_predicted_too(tiny_model_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model_path)
    base = predict_memory(checkpoint, EngineConfig(num_kv_blocks=64))
    for dtype in ("auto", "float32", "bfloat16"):
        other = predict_memory(checkpoint, EngineConfig(num_kv_blocks=64, dtype=dtype))
        assert base.weight_bytes[dtype] == other.use.weights
        assert base.kv_token_bytes[dtype] * 64 * 16 == other.use.kv
    assert base.dtype == "auto"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_kv_cache_beyond_the_machine_is_refused_in_words(tiny_model_path: Path, backend: str) -> None:
    checkpoint = open_checkpoint(tiny_model_path)
    config = EngineConfig(num_kv_blocks=90_000_000, block_size=64, backend=backend)
    total = psutil.virtual_memory().total / 1e9
    said = (
        rf"num_kv_blocks 90,000,000 would be a KV cache of [\d,.]+ GB, and this machine has {total:,.1f} GB of memory"
    )
    with pytest.raises(ModelLoadError, match=rf"^{said}, [\d.]+ GB of it free; lower num_kv_blocks, or leave it out"):
        Engine(tiny_model_path, config)
    block = predict_memory(checkpoint, replace(config, num_kv_blocks=1)).use.kv
    most = psutil.virtual_memory().total // block
    assert predict_memory(checkpoint, replace(config, num_kv_blocks=most)).num_blocks == most
    with pytest.raises(ModelLoadError, match="lower num_kv_blocks"):
        predict_memory(checkpoint, replace(config, num_kv_blocks=most + 1))


def test_headers_alone_are_read(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(tiny_model_path)
    monkeypatch.setattr(type(checkpoint), "tensor", lambda *_: pytest.fail("a weight was read"))
    assert predict_memory(checkpoint, EngineConfig()).use.weights > 0


def test_a_process_of_its_own_plans_for_a_notebook(tiny_model_path: Path) -> None:
    plan = plan_memory(tiny_model_path, num_kv_blocks=10, prefix_cache=False, dtype="float32")
    checkpoint = open_checkpoint(tiny_model_path)
    here = predict_memory(checkpoint, EngineConfig(num_kv_blocks=10, dtype="float32")).to_dict()
    assert plan["use"] == here["use"]
    assert torch.finfo(getattr(torch, plan["dtype"])).bits == 32
    with pytest.raises(ModelLoadError, match=r"There is no file /.*/no\.gguf"):
        plan_memory("no.gguf")
    with pytest.raises(ValueError, match="unknown engine setting 'blocks'"):
        plan_memory(tiny_model_path, blocks=3)


def test_the_command_says_it_in_words(tiny_model_path: Path) -> None:
    command = [sys.executable, "-m", "vllm_nb.cli", "memory", str(tiny_model_path), "--num-kv-blocks", "10"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "KV cache, 10 blocks of 16 tokens" in text
    assert "tiny-llama on CPU" in text
    assert not json.dumps(text).count("nan")


@pytest.mark.parametrize(("settings", "tokens"), [({}, 256), ({"max_num_seqs": 300}, 300), ({"prefill_chunk": 7}, 256)])
def test_a_step_on_a_cpu_takes_as_many_tokens_as_its_caches_hold(tiny_model_path, settings, tokens):
    checkpoint = open_checkpoint(tiny_model_path)
    config = EngineConfig(device="cpu", num_kv_blocks=32, **settings)
    assert predict_memory(checkpoint, config).max_num_batched_tokens == tokens
    own = replace(config, max_num_batched_tokens=900)
    assert predict_memory(checkpoint, own).max_num_batched_tokens == 900
