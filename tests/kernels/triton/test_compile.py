"""Kernels compiled ahead of time for GPUs that are not here. `vllm-nb bench compile` does it for all cases."""

import json
import math
import os
import subprocess
import sys

import pytest

from vllm_nb.kernels.triton.tiles import Gpu, num_splits

CASES = [
    "head 128",
    "bf16, 1 r",
    "head 256",
    "rope",
    "norm",
    "silu",
    "sample",
    "penalties",
    "q4_min, 1 r",
    "q6, 512",
    "logprobs",
    "random",
    "logits of",
    "q4_min, e",
    "fp8e4nv, 4",
    "exp",
]


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    command = [sys.executable, "-m", "vllm_nb.cli", "bench", "compile", "--json", "--only", *CASES]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_each_kernel_compiles_for_both_generations(compiled):
    kernels = {row["kernel"] for row in compiled}
    assert {row["sm"] for row in compiled} == {80, 90}
    assert kernels == {
        "attention_kernel", "merge_splits", "rope_and_cache_kernel", "rms_norm_kernel", "gated_kernel", "sample_kernel",
        "count_kernel", "penalize_kernel", "gemv_kernel", "gemm_kernel", "grouped_kernel", "token_logprobs_kernel",
        "uniforms_kernel", "softcap_kernel", "embedding_kernel",
    }  # fmt: skip


def test_nothing_spills_and_all_fits(compiled):
    assert not [row for row in compiled if row["spilled_bytes"]]
    assert max(row["shared_kb"] for row in compiled) < 163  # of an A100's block; an H100 has 227
    assert max(row["registers"] for row in compiled) < 255


def hot(compiled, case: str) -> dict:
    (row,) = [row for row in compiled if row["case"] == case and row["sm"] == 90 and row["kernel"] != "merge_splits"]
    return row


def test_hot_kernels_keep_memory_and_tensor_cores_busy(compiled):
    """A processor of an H200 needs 25 KB on their way: 4.8 TB/s for 700 ns, over 132 processors."""
    for case in ("decode head 128/128", "prefill head 128/128", "bf16, 1 rows", "q4_min, 1 rows", "norm 4096"):
        assert hot(compiled, case)["load_bits"] == 128, case
        assert hot(compiled, case)["in_flight_kb"] >= 50, case
    assert hot(compiled, "decode head 128/128")["mma"] == "mma"
    assert hot(compiled, "prefill head 128/128")["mma"] == "wgmma"
    assert hot(compiled, "bf16, 1 rows")["barriers"] == hot(compiled, "q4_min, 1 rows")["barriers"] == 0


def test_launches_of_a_step_are_those_that_its_layers_make():
    """Of 28 layers, each: two norms, rotary embedding, attention, a gate, and four products, which are Triton's own for
    one row, where attention is split and merged too."""
    script = "import json; from vllm_nb.bench.gpu_launches import launches; print(json.dumps(list(launches())))"
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    counted = {(row["shapes"], row["rows"]): (row["triton"], row["pytorch"]) for row in json.loads(done.stdout)}
    ends = 7  # tokens, embedding, rows with logits, logits' product and type, copies of logits and hidden states
    assert counted["qwen3-0.6b", 256] == (28 * 5 + 1, 28 * 4 + ends)
    assert counted["qwen3-0.6b", 1] == (28 * 10 + 2, ends - 1)
    assert counted["qwen3-8b", 1] == (36 * 10 + 2, ends - 1)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8, 10, 16, 20, 24, 28, 32, 40, 64, 100, 256])
def test_splits_fill_whole_waves(batch):
    """Decoding 8 key heads on 132 processors: at most a fifth of the processors' time is lost at the end."""
    programs = batch * 8 * num_splits(batch * 8, 32768, 64, Gpu(132, 90))
    assert programs >= 1.9 * 132 or batch >= 32
    assert programs / 132 / math.ceil(programs / 132) >= 0.8


def test_short_contexts_are_not_split():
    assert num_splits(8, 300, 64, Gpu(132, 90)) == 1


def test_an_8_bit_float_needs_a_gpu_that_has_it(compiled):
    assert {row["sm"] for row in compiled if "fp8" in row["case"] and row["kernel"] != "merge_splits"} == {90}
