"""Products with packed weights, interpreted, against the values gguf-py dequantises."""

from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton import knobs

from vllm_nb.kernels import reference
from vllm_nb.kernels import triton as kernels
from vllm_nb.kernels.planes import CODEBOOK, GGUF_PLANES, take_apart
from vllm_nb.kernels.quant import QuantTensor, dequantize
from vllm_nb.kernels.triton.packing import Weight, quantize_rows
from vllm_nb.kernels.triton.tiles import ProductTiles

DEVICE = torch.device("cpu" if knobs.runtime.interpret else "cuda")
EXACT = 1e-6 if DEVICE.type == "cpu" else 1e-5  # a GPU's sums have another order


def values_of(raw: QuantTensor) -> torch.Tensor:
    """As gguf-py reads them; on a bare GPU machine, which lacks it, as their planes say."""
    return dequantize(raw) if find_spec("gguf") else from_planes(raw)


def from_planes(raw: QuantTensor) -> torch.Tensor:
    """The definition in kernels.planes, in NumPy."""
    planes, scales, minima = take_apart(raw.type, np.asarray(raw.data))
    fmt, shift = GGUF_PLANES[raw.type], 0
    numbers = np.zeros((*planes[0][1].shape[:2], 32), np.int64)
    for bits, plane in planes:
        fields = plane[:, :, None, :] >> (bits * np.arange(8 // bits, dtype=np.uint8))[:, None]
        numbers += (fields & (2**bits - 1)).reshape(numbers.shape).astype(np.int64) << shift
        shift += bits
    values = np.array(CODEBOOK)[numbers] if fmt.codebook else numbers - fmt.zero
    values = values.reshape(len(raw.data), -1, fmt.group) * scales.reshape(len(raw.data), -1, 1).astype(np.float32)
    if minima is not None:
        values = values + minima.reshape(len(raw.data), -1, 1).astype(np.float32)
    return torch.from_numpy(values.reshape(raw.shape).astype(np.float32)).cpu()


@pytest.mark.parametrize("kind", GGUF_PLANES)
def test_what_planes_say_is_what_gguf_reads(random_blocks, kind):
    pytest.importorskip("gguf", reason="a bare GPU machine")
    raw = random_blocks(kind, 5, 512)
    expected = dequantize(raw)
    torch.testing.assert_close(from_planes(raw), expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


def pack(*parts, dtype=torch.float32):
    return kernels.pack(parts, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("rows", [1, 3, 5], ids=["gemv", "gemv of 3", "gemm"])
@pytest.mark.parametrize("kind", GGUF_PLANES)
def test_every_gguf_type(random_blocks, kind, rows):
    raw = random_blocks(kind, 37, 512)
    x = torch.randn(rows, 512)
    weight = pack(raw)
    assert weight.shape == (37, 512)
    expected = x.double() @ values_of(raw).double().to(DEVICE).T
    error = (kernels.linear(x, weight).double() - expected).abs().max() / expected.abs().max()
    assert error < (1e-3 if kind.endswith("_K") else EXACT)  # two-level scales are stored as float16 products


@pytest.mark.parametrize("kind", GGUF_PLANES)
def test_embedding_rows(random_blocks, kind):
    raw = random_blocks(kind, 9, 256)
    ids = torch.tensor([8, 0, 3, 3], dtype=torch.int32)
    rows = kernels.embedding(ids, pack(raw), 2.0)
    expected = values_of(raw).to(DEVICE)[ids.long()] * 2
    assert (rows - expected).abs().max() <= (1e-3 if kind.endswith("_K") else EXACT) * expected.abs().max()


@settings(max_examples=12, deadline=None)
@given(
    tokens=st.integers(1, 20),
    rows=st.integers(1, 70),
    inputs=st.integers(1, 80),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_dense_weights_of_odd_sizes(tokens, rows, inputs, dtype):
    x, w = torch.randn(tokens, inputs).to(dtype), torch.randn(rows, inputs).to(dtype)
    bias = torch.randn(rows).to(dtype)
    close = {"atol": 2e-5, "rtol": 2e-5} if dtype == torch.float32 else {"atol": 3e-2, "rtol": 1e-2}
    torch.testing.assert_close(kernels.linear(x, pack(w, dtype=dtype), bias), reference.linear(x, w, bias), **close)


def test_parts_of_different_types_are_one_weight(random_blocks):
    parts = [random_blocks("Q4_K", 20, 256), random_blocks("Q4_K", 4, 256, seed=1), random_blocks("Q6_K", 3, 256)]
    weight = pack(*parts)
    assert len(weight.segments) == 2  # neighbours of one format are one product
    x = torch.randn(2, 256)
    expected = x @ torch.cat([values_of(part) for part in parts]).to(DEVICE).T
    assert (kernels.linear(x, weight) - expected).abs().max() < 1e-3 * expected.abs().max()
    assert weight.nbytes == 24 * 256 * 0.625 + 3 * 256 * 0.875


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("tokens", [2, 9])
def test_rows_with_one_scale(dtype, tokens):
    values = torch.randn(33, 64)
    scaled = quantize_rows(values, dtype)
    stands_for = scaled.values.float() * scaled.scales.unsqueeze(1)
    assert (stands_for - values).abs().max() < (0.02 if dtype == torch.int8 else 0.15)
    x = torch.randn(tokens, 64)
    out = kernels.linear(x, Weight((scaled,), torch.float32))
    torch.testing.assert_close(out, x @ stands_for.T, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("tokens", [1, 6])
def test_a_sum_split_over_programs_is_the_same(random_blocks, monkeypatch, tokens):
    """What a GPU with many processors does with a small matrix."""
    raw = random_blocks("Q4_0", 20, 1024)
    x = torch.randn(tokens, 1024)
    whole = kernels.linear(x, pack(raw))
    tiles = ProductTiles(16, 16, 32, splits=5, warps=4)
    monkeypatch.setattr(import_module("vllm_nb.kernels.triton.linear"), "gemv_tiles", lambda *_: tiles)
    monkeypatch.setattr(import_module("vllm_nb.kernels.triton.linear"), "gemm_tiles", lambda *_: tiles)
    torch.testing.assert_close(kernels.linear(x, pack(raw)), whole, atol=2e-5, rtol=2e-5)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_mixture_of_experts_equals_a_loop_over_tokens(data):
    tokens, experts = data.draw(st.integers(1, 12)), data.draw(st.sampled_from([1, 3, 8]))
    top_k = data.draw(st.integers(1, min(experts, 3)))
    size, inner = data.draw(st.sampled_from([(24, 20), (64, 32)]))
    generator = torch.Generator(torch.get_default_device()).manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randn(tokens, size, generator=generator)
    gate_up = torch.randn(experts, 2 * inner, size, generator=generator)
    down = torch.randn(experts, size, inner, generator=generator)
    ids = torch.stack([torch.randperm(experts, generator=generator)[:top_k] for _ in range(tokens)]).int()
    factors = torch.rand(tokens, top_k, generator=generator)
    expected = torch.zeros_like(x)
    for t in range(tokens):
        for choice, expert in enumerate(ids[t].tolist()):
            hidden = reference.silu_mul((gate_up[expert] @ x[t])[None])[0]
            expected[t] += factors[t, choice] * (down[expert] @ hidden)
    # sums of products up to the greatest result cancel in the others
    tolerance = 2e-6 * float(expected.abs().max())
    torch.testing.assert_close(kernels.moe(x, gate_up, down, ids, factors), expected, atol=tolerance, rtol=2e-6)
