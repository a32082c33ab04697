"""Packing, products, embedding, norms and element-wise functions against gguf-py, NumPy and torch.nn."""

from importlib import import_module

import gguf
import numpy as np
import pytest
import torch
from gguf import quants

from vllm_nb.kernels import reference
from vllm_nb.kernels.quant import QuantTensor

CPU = torch.device("cpu")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def quantized(rng, kind: str, rows: int, columns: int) -> tuple[QuantTensor, np.ndarray]:
    """A random matrix in GGUF blocks, and its values according to gguf-py."""
    type_ = gguf.GGMLQuantizationType[kind]
    data = quants.quantize(rng.standard_normal((rows, columns), dtype=np.float32), type_)
    return QuantTensor(kind, (rows, columns), data), quants.dequantize(data, type_)


def close(ours: torch.Tensor, theirs, dtype: torch.dtype) -> None:
    assert ours.dtype == dtype
    expected = torch.as_tensor(theirs).double()
    torch.testing.assert_close(ours.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_pack_stacks_parts_of_different_types(dtype):
    rng = np.random.default_rng(0)
    q4, q4_values = quantized(rng, "Q4_1", 7, 64)
    q8, q8_values = quantized(rng, "Q8_0", 3, 64)
    plain = torch.randn(5, 64, dtype=torch.bfloat16)
    weight = reference.pack([q4, plain, q8], dtype=dtype, device=CPU)
    expected = np.concatenate([q4_values, plain.float().numpy(), q8_values])
    assert torch.equal(weight, torch.from_numpy(expected).to(dtype))


def test_pack_in_slabs_equals_pack_at_once(monkeypatch):
    quant, values = quantized(np.random.default_rng(1), "Q5_0", 23, 32)
    monkeypatch.setattr(import_module("vllm_nb.kernels.reference.linear"), "SLAB_ROWS", 4)
    packed = reference.pack([quant, quant], dtype=torch.float32, device=CPU)
    assert torch.equal(packed, torch.from_numpy(np.concatenate([values, values])))


def test_pack_owns_its_memory():
    """A memory-mapped file may be closed once its weights are packed."""
    source = torch.ones(2, 4)
    weight = reference.pack([source], dtype=torch.float32, device=CPU)
    source.zero_()
    assert weight.eq(1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(dtype, with_bias):
    x, w, b = torch.randn(3, 16, dtype=dtype), torch.randn(5, 16, dtype=dtype), torch.randn(5, dtype=dtype)
    expected = x.double() @ w.double().T + (b.double() if with_bias else 0)
    ours = reference.linear(x, w, b if with_bias else None)
    torch.testing.assert_close(ours.double(), expected, atol=20 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_embedding_and_head_share_a_weight():
    weight = reference.pack([torch.randn(11, 8)], dtype=torch.float32, device=CPU)
    ids = torch.tensor([10, 0, 3, 3], dtype=torch.int32)
    rows = reference.embedding(ids, weight, scale=2.5)
    assert torch.equal(rows, weight[[10, 0, 3, 3]] * 2.5)
    assert reference.linear(rows, weight).argmax(-1).shape == (4,)


def test_gather_rows():
    x = torch.randn(6, 4)
    assert torch.equal(reference.gather_rows(x, torch.tensor([5, 0], dtype=torch.int32)), x[[5, 0]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype):
    x, weight = torch.randn(4, 96, dtype=dtype) * 3, torch.randn(96)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    close(reference.rms_norm(x, weight.to(torch.promote_types(dtype, torch.float32)), 1e-5), exact, dtype)


def test_rms_norm_of_large_half_precision_values_does_not_overflow():
    x = torch.full((1, 8), 6e4, dtype=torch.float16)
    assert torch.equal(reference.rms_norm(x, torch.ones(8), 1e-6), torch.ones(1, 8, dtype=torch.float16))


def test_add_rms_norm_returns_norm_and_sum():
    x, residual, weight = torch.randn(3, 10), torch.randn(3, 10), torch.randn(10)
    normed, total = reference.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, reference.rms_norm(x + residual, weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_activations(dtype):
    gate_up = torch.randn(5, 24, dtype=dtype)
    gate, up = gate_up.double().numpy()[:, :12], gate_up.double().numpy()[:, 12:]
    close(reference.silu_mul(gate_up), gate / (1 + np.exp(-gate)) * up, dtype)
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    close(reference.gelu_tanh_mul(gate_up), gelu * up, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softcap(dtype):
    x = torch.linspace(-8, 8, 33).to(dtype)[None]
    close(reference.softcap(x, 3.0), 3 * np.tanh(x.double().numpy() / 3), dtype)
