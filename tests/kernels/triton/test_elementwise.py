"""Norms and activations, interpreted, against the reference on odd sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nb.kernels import reference
from vllm_nb.kernels import triton as kernels

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
sizes = {
    "tokens": st.integers(1, 5),
    "size": st.sampled_from([1, 7, 64, 100, 1100]),
    "dtype": st.sampled_from([torch.float32, torch.float16]),
}


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE[theirs.dtype], rtol=TOLERANCE[theirs.dtype])


@settings(max_examples=15, deadline=None)
@given(**sizes)
def test_rms_norm(tokens, size, dtype):
    x, residual, weight = (torch.randn(tokens, size).to(dtype) for _ in range(3))
    weight = weight[0].float()
    close(kernels.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    for ours, theirs in zip(
        kernels.add_rms_norm(x, residual, weight, 1e-5), reference.add_rms_norm(x, residual, weight, 1e-5), strict=True
    ):
        close(ours, theirs)


@settings(max_examples=15, deadline=None)
@given(**sizes)
def test_gates(tokens, size, dtype):
    gate_up = (3 * torch.randn(tokens, 2 * size)).to(dtype)
    close(kernels.silu_mul(gate_up), reference.silu_mul(gate_up))
    close(kernels.gelu_tanh_mul(gate_up), reference.gelu_tanh_mul(gate_up))


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_softcap(cap):
    x = 40 * torch.randn(3, 700)
    torch.testing.assert_close(kernels.softcap(x, cap), reference.softcap(x, cap), atol=1e-4, rtol=1e-4)
