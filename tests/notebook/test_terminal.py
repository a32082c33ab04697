"""IPython in a terminal has no display to update: the answer is printed as it comes, once."""

import subprocess
import sys

import pytest


@pytest.mark.usefixtures("engine")
def test_the_answer_is_printed_once() -> None:
    cell = "%%vllm --temperature 0 --max-tokens 8 -o answer\nWhat is the sea?"
    check = "get_ipython().run_cell(" + repr(cell) + ", store_history=True); print(repr(answer.text))"
    command = [sys.executable, "-m", "IPython", "--no-banner", "--colors=nocolor", "--ext=vllm_nb", "-c", check]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    text = eval(done.stdout.strip().splitlines()[-1])
    assert "sea" in text
    assert done.stdout.startswith(text + "\n")
    assert done.stdout.count(text) == 2, done.stdout  # printed by the cell, and by us
    assert "tok/s" in done.stdout  # beside Out[1]
