"""Kernels compiled ahead of time for GPUs that are not here. `vllm-nb bench compile` does it for all cases."""

import json
import os
import subprocess
import sys

import pytest

CASES = [
    "head 128",
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


def test_an_8_bit_float_needs_a_gpu_that_has_it(compiled):
    assert {row["sm"] for row in compiled if "fp8" in row["case"] and row["kernel"] != "merge_splits"} == {90}
