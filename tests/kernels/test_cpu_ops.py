"""Norms, activations and row gathers against the reference backend in float64."""

import pytest
import torch

from vllm_nb.kernels import cpu, reference


def random(*shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * scale


@pytest.mark.parametrize("width", [16, 20, 576, 641])
@pytest.mark.parametrize("rows", [1, 5])
def test_norms(rows, width):
    x, residual, weight = random(rows, width, scale=3), random(rows, width), random(width) + 1
    expected = reference.rms_norm(x.double(), weight.double(), 1e-5)
    torch.testing.assert_close(cpu.rms_norm(x, weight, 1e-5).double(), expected, atol=2e-6, rtol=2e-6)
    normed, total = cpu.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    expected = reference.rms_norm((x + residual).double(), weight.double(), 1e-5)
    torch.testing.assert_close(normed.double(), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("name", ["silu_mul", "gelu_tanh_mul"])
@pytest.mark.parametrize("width", [1, 40, 1536])
def test_gated_activations(name, width):
    x = random(3, 2 * width, scale=4)
    x[0, 0], x[-1, 0] = 100.0, -100.0
    expected = getattr(reference, name)(x.double())
    torch.testing.assert_close(getattr(cpu, name)(x).double(), expected, atol=1e-6, rtol=2e-6)


def test_softcap():
    x = random(3, 50, scale=40)
    torch.testing.assert_close(cpu.softcap(x, 30.0).double(), reference.softcap(x.double(), 30.0), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("name", ["silu_mul", "gelu_tanh_mul"])
def test_nan_stays(name):
    x = torch.zeros(2, 64)
    x[0, 3] = torch.nan
    out = getattr(cpu, name)(x)
    assert out[0, 3].isnan()
    assert out.isnan().sum() == 1


def test_gather_rows():
    x = random(7, 37)
    indices = torch.tensor([6, 0, 3], dtype=torch.int32)
    assert torch.equal(cpu.gather_rows(x, indices), x[indices.long()])
