"""`make demo` as a user meets it: the real notebook, a real engine process, the real model."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def environment(tmp_path) -> Iterator[dict[str, str]]:
    """With a runtime folder of its own, so that no engine that runs here is reused, and none is left."""
    environment = os.environ | {"VLLM_NB_RUNTIME_DIR": str(tmp_path / "run")}
    yield environment
    command = [Path(sys.executable).with_name("vllm-nb"), "stop", "--all"]
    subprocess.run(command, env=environment, check=True, capture_output=True)


def test_the_demo_answers(root, smollm2_path, environment):
    command = [sys.executable, "scripts/run_notebook.py", "notebooks/00_first_tokens.ipynb"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    cells = [cell.split("\n", 1) for cell in done.stdout.split("\n\n┃ ")]
    answers = {source: shown for source, shown in cells[1:] if source.startswith("%%vllm")}
    assert len(answers) >= 3
    for source, shown in answers.items():
        text = [line for line in shown.splitlines() if line and line[0] not in "┃["]
        assert text, f"{source}: {shown}"
    assert "✓" in done.stdout
