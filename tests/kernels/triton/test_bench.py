"""`vllm-nb bench gpu`, which needs a GPU to measure anything, runs to its end at the shapes "tiny"; and what the engine
imports is what a GPU machine has."""

import json
import subprocess
import sys

import pytest

from vllm_nb.cli import main

ALONE = """
import sys

allowed = {"torch", "triton", "tokenizers", "safetensors", "numpy", "jinja2", "vllm_nb"}  # jinja2 comes with PyTorch
class Only:
    def find_spec(self, name, path=None, target=None):
        importer = sys._getframe(1)
        while "importlib" in importer.f_code.co_filename:
            importer = importer.f_back
        ours = importer.f_globals.get("__name__", "").startswith("vllm_nb")
        top = name.partition(".")[0]
        if ours and top not in allowed and top not in sys.stdlib_module_names:
            raise ImportError(f"{name} is not on a GPU machine, and {importer.f_globals['__name__']} imports it")
sys.meta_path.insert(0, Only())

import torch
from vllm_nb.api import Engine
from vllm_nb.bench.synthetic import SyntheticCheckpoint
from vllm_nb.config import EngineConfig
from vllm_nb.engine.build import build_core
from vllm_nb.kernels import triton

config = EngineConfig(device="cpu", backend="triton", dtype="float32", num_kv_blocks=8)
core = build_core(SyntheticCheckpoint("tiny", torch.device("cpu")), config)
print(core.info.backend)
"""


def test_the_benchmark_runs_to_its_end(capsys, tmp_path):
    arguments = [
        "--shapes",
        "tiny",
        "--throughput-shapes",
        "tiny",
        "--requests",
        "2",
        "--sizes",
        "1x20",
        "--json",
        "--plot",
    ]
    assert main(["bench", "gpu", *arguments, str(tmp_path / "plot.svg")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["gpu"] == "none: interpreted"
    kernels = {row["kernel"] for row in rows if "kernel" in row}
    assert kernels == {"attention", "norm", "silu * mul", "QK-norm, rope, cache", "linear", "sample"}
    assert [row["rows"] for row in rows if "rows" in row] == [1, 3]
    assert rows[-1]["engine"] == "vllm_nb"
    assert "QK-norm" in (tmp_path / "plot.svg").read_text()


@pytest.mark.parametrize("shapes", ["qwen3-8b"])
def test_without_a_gpu_it_says_so(shapes, capsys):
    assert main(["bench", "gpu", "--shapes", shapes]) == 1
    assert "needs an NVIDIA GPU, and PyTorch sees none here" in capsys.readouterr().err


def test_the_engine_needs_only_what_a_gpu_machine_has():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["triton"]
