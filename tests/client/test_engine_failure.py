"""A process whose engine fails while it serves: it says so, and ends with status 1."""

import json
import re
import subprocess
import sys
from contextlib import contextmanager

import httpx

from vllm_nb.connection import Connection, load, save

# A module of ours as a program, in which the engine's next step fails, as a bug would make it, once a file is there.
PROGRAM = """
import runpy, sys
from pathlib import Path
from vllm_nb.engine.engine import EngineCore

module, fault, *arguments = sys.argv[1:]
step = EngineCore.step

def faulty(core):
    return 1 / 0 if Path(fault).exists() else step(core)

EngineCore.step = faulty
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__")
"""


@contextmanager
def program(module, fault, *args):
    command = [sys.executable, "-c", PROGRAM, module, str(fault), *map(str, args)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def break_while_it_serves(client, fault):
    """Returns what the stream that runs is told."""
    body = {"prompt": "Hi", "max_tokens": 60_000, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith('data: {"id"')
        fault.touch()
        told = [line for line in lines if '"error"' in line]
    assert client.get("/health").json()["status"] == "failed"
    return json.loads(told[-1].removeprefix("data: "))["error"]


def test_serve_in_a_terminal(tiny_model_path, tmp_path):
    fault = tmp_path / "fault"
    with program("vllm_nb.cli", fault, "serve", tiny_model_path, "--port", 0, "--num-kv-blocks", 512) as process:
        line = next(line for line in process.stderr if "is served at" in line)
        with httpx.Client(base_url=re.search(r"http://127\.0\.0\.1:\d+", line)[0], timeout=60) as client:
            assert break_while_it_serves(client, fault)["code"] == "engine_dead"
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 1
    assert rest.splitlines()[-1] == "error: the engine has failed: ZeroDivisionError('division by zero')"


def test_the_engine_process_of_notebooks(tiny_model_path, tmp_path):
    fault, path = tmp_path / "fault", tmp_path / "engine.json"
    save(path, Connection.new(name="mine", key="", model=str(tiny_model_path), config={"num_kv_blocks": 512}))
    with program("vllm_nb.server", fault, path) as process:
        log = iter(process.stderr)
        assert next(line for line in log if "tiny-llama is ready" in line)
        connection = load(path)
        headers = {"Authorization": f"Bearer {connection.token}"}
        with httpx.Client(base_url=connection.url, headers=headers, timeout=60) as client:
            assert "ZeroDivisionError" in break_while_it_serves(client, fault)["message"]
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 1
    assert rest.splitlines()[-1].endswith(
        "ERROR vllm_nb.server: the engine has failed: ZeroDivisionError('division by zero')"
    )
    assert not path.exists()
