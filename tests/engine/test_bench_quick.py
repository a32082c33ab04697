"""`vllm-nb bench quick`: what it calls the start is the start of the process."""

import json
import subprocess
import sys
import time


def test_load_s_counts_from_the_start_of_the_process(tiny_model_path):
    command = [sys.executable, "-m", "vllm_nb.cli", "bench", "quick", str(tiny_model_path), "--json", "--repeats", "1"]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    elapsed = time.monotonic() - start
    (row,) = map(json.loads, done.stdout.splitlines())
    measured = [512 / row["prefill"], 64 / row["decode1"], 16 * 64 / row["decode16"]]
    assert 0.2 < row["load_s"] < elapsed - sum(measured) + 0.05
