"""IPython in a terminal has no display to update: the answer is printed as it comes, once."""

import ast
import subprocess
import sys

import pytest


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("answers", [1, 2])
def test_each_answer_is_printed_once(answers: int) -> None:
    cell = f"%%vllm --seed 1 --max-tokens 8 -o answer -n {answers}\nWhat is the sea?"
    check = f"get_ipython().run_cell({cell!r}, store_history=True); print([each.text for each in answer.choices])"
    command = [sys.executable, "-m", "IPython", "--no-banner", "--colors=nocolor", "--ext=vllm_nb", "-c", check]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()
    printed, _, listed = shown.rpartition("\n")
    texts = ast.literal_eval(listed)
    assert len(texts) == answers
    for text in texts:
        assert printed.count(text) == 1
    assert "tok/s" in printed  # beside Out[1]
