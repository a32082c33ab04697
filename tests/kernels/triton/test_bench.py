"""`vllm-nb bench gpu`, which needs a GPU to measure anything, runs to its end at the shapes "tiny"; and what the engine
imports is what a GPU machine has."""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_nb.bench.cli import add_arguments
from vllm_nb.bench.gpu import Case, Machine, _rows
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

from pathlib import Path
from vllm_nb import EngineConfig, SamplingParams
from vllm_nb.api import Engine

config = EngineConfig(device="cpu", backend="triton", dtype="float32", num_kv_blocks=8)
with Engine(Path(sys.argv[1]), config) as engine:
    (answer,) = engine.generate(SamplingParams(max_tokens=2, ignore_eos=True), ["Hello"])
    print(engine.info.backend, len(answer.token_ids), engine.memory()["measured"]["resident"])

from vllm_nb.cli import main

assert main(["bench", "gpu", "--parts", "sampling", "--shapes", "tiny", "--json"]) == 0
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


def test_the_engine_needs_only_what_a_gpu_machine_has(tiny_model_path):
    command = [sys.executable, "-c", ALONE, str(tiny_model_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answered, *rows = done.stdout.splitlines()
    assert answered == "triton 2 None"
    assert {json.loads(row).get("kernel") for row in rows} == {None, "sample"}


def test_a_case_that_fails_does_not_lose_the_others():
    def cases():
        yield Case("broken", "a", lambda: 1 / 0, 1, 0)
        yield Case("whole", "b", lambda: 1, 1, 0, lambda: 1 / 0)
        raise MemoryError("no room")

    rows = list(_rows([("first", cases), ("second", cases)], Machine(1e9, 1e9), lambda work: 1e-6 + 0 * work()))
    assert [(row["kernel"], row.get("error")) for row in rows[:3]] == [
        ("broken", "ZeroDivisionError: division by zero"),
        ("whole", None),
        ("first", "MemoryError: no room"),
    ]
    assert len(rows) == 6


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_script", Path(__file__).parents[3] / "scripts" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_part_that_hangs_or_fails_keeps_what_it_printed(script, tmp_path):
    says = 'print(\'{"kernel": "a", "us": 1.5, "torch_us": null}\', flush=True);'
    parts = [
        script.run(name, [sys.executable, "-c", f"import time; {says} {then}"], 1.5, tmp_path / "log")
        for name, then in (("fails", "print('last words'); raise SystemExit(3)"), ("hangs", "time.sleep(60)"))
    ]
    assert [part["ended"] for part in parts] == ["exit status 3", "stopped after 2 s"]
    assert [part["rows"] for part in parts] == [[{"kernel": "a", "us": 1.5, "torch_us": None}]] * 2
    assert (tmp_path / "log").read_text().count("last words") == 1
    table = script.markdown({"gpu": "H200"}, parts)
    assert "### fails: exit status 3" in table
    assert "| kernel | us | torch_us |\n|---|---|---|\n| a | 1.5 | - |" in table


def test_processes_that_a_part_starts_find_the_installed_package(script, tmp_path, monkeypatch):
    """As the tests do, in a directory where another vllm_nb lies."""
    monkeypatch.setattr(script, "INSTALLED", tmp_path / "installed")
    script.install()
    where = "import json, vllm_nb.kernels; print(json.dumps({'at': vllm_nb.kernels.__file__}))"
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {where!r}], check=True)"
    part = script.run("starts", [sys.executable, "-P", "-c", starts], 60, tmp_path / "log")
    assert part["ended"] == "ok", (tmp_path / "log").read_text()
    assert part["rows"] == [{"at": str(tmp_path / "installed" / "vllm_nb" / "kernels" / "__init__.py")}]


def test_the_script_needs_no_plugin_of_pytest(script):
    command = [*script.command(["tests", "elementwise"]), "-p", "no:timeout", "-p", "no:benchmark", "--collect-only"]
    done = subprocess.run(command, cwd=script.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_script_runs_every_test_and_every_part(script):
    here = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert set(script.TESTS) == here - {"bench"}  # this file is about machines without a GPU
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for arguments, _ in script.BENCHES.values():
        if arguments[0] == "bench":
            parser.parse_args(["gpu", *arguments[1:], *script.TINY])


def test_both_runs_fit_into_fifteen_minutes_with_starts(script):
    assert sum(script.SECONDS.values()) <= 900 - 90
    first = [most for _, most in script.BENCHES.values()][:4]
    assert sum(first) <= script.SECONDS["bench"]  # even if each takes all that it may
    assert script.SECONDS["test"] >= 3 * script.TEST_SECONDS
