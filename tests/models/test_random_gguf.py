"""`scripts/random_gguf.py`: its files are what llama.cpp would have made of such a model, and can be run."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import gguf
import pytest

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPT = Path(__file__).parents[2] / "scripts" / "random_gguf.py"
SIZES = ["--hidden", "256", "--heads", "4", "--kv-heads", "2", "--intermediate", "512"]


@pytest.mark.parametrize(
    ("architecture", "head_dim", "types", "layers", "expected"),
    [
        # of 8 layers, 0, 3, 6 and 7 get more bits; rows of attn_output are 320 long, too odd for Q5_K
        ("qwen3", 80, "Q5_K_M", 8, {"Q5_K": 8 * 6 - 8, "Q5_1": 8, "Q6_K": 8 + 1}),
        # rows of attn_output are 80 long: no type with blocks has such
        ("llama", 20, "Q4_0", 1, {"Q4_0": 7 - 1, "F16": 1, "Q6_K": 1}),
        ("gemma3", 256, "IQ4_NL", 2, {"IQ4_NL": 2 * 7, "Q6_K": 1}),
    ],
)
def test_a_file_of_random_weights_runs(
    architecture, head_dim, types, layers, expected, tmp_path, open_model, paged_run
):
    path = tmp_path / "random.gguf"
    shape = ["--architecture", architecture, "--head-dim", str(head_dim), "--layers", str(layers), *SIZES]
    subprocess.run([sys.executable, SCRIPT, path, "--types", types, *shape], check=True)
    tensors = gguf.GGUFReader(path).tensors
    assert Counter(t.tensor_type.name for t in tensors if t.shape.size == 2) == expected

    logits = paged_run(open_model(path), [40]).step({0: range(40)})[0]
    assert logits.isfinite().all()
    assert 0.1 < logits.std() < 10  # neither vanishing nor exploding: kernels meet numbers as in a real model
