"""`scripts/soak.py`: a round of its load on a real server, and what it makes of what the server holds."""

import re
import subprocess
import sys
from pathlib import Path
from runpy import run_path

SCRIPT = Path(__file__).parents[2] / "scripts" / "soak.py"


def test_a_round_of_all_kinds_of_requests(tiny_model_path: Path) -> None:
    options = ["--minutes", "0.01", "--load", "4", "--rest", "1", "--threads", "1"]
    command = [sys.executable, SCRIPT, tiny_model_path, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    head, row, grown, failures = done.stdout.splitlines()
    assert head.split() == ["minute", "MiB", "threads", "files", "requests"]
    assert set(re.findall(r"\d+ (\w+)", row)) >= {
        "choices",
        "embeddings",
        "left",
        "logprobs",
        "prompts",
        "stream",
        "whole",
    }
    assert "Held(memory=0.0, threads=0, files=0); allowed" in grown  # a single rest has nothing to compare with
    assert failures == "no request failed"


def test_requests_that_fail_are_told(tiny_model_path: Path) -> None:
    options = ["--minutes", "0.01", "--load", "1", "--rest", "0.5", "--threads", "1", "--max-model-len", "40"]
    command = [sys.executable, SCRIPT, tiny_model_path, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "tokens and this engine takes at most 39 and one to answer" in done.stdout


def test_growth_is_counted_after_the_warm_up() -> None:
    script = run_path(str(SCRIPT))
    held = [
        script["Held"](memory, 10, 20 + memory / 100) for memory in (100, 900, 1000, 1000, 1000, 1000, 1000, 1000, 1050)
    ]
    assert script["growth"](held) == (50, 0, 0.5)
    assert script["growth"](held[:1]) == (0, 0, 0)
