"""Packed weights: products and embedding rows against NumPy on the values that gguf-py reads from the same bytes."""

import numpy as np
import pytest
import torch

from vllm_nb.kernels import cpu
from vllm_nb.kernels.cpu.formats import GGUF_FORMATS
from vllm_nb.kernels.quant import QuantTensor, dequantize

# k-quants: a super-block's scale times a small integer is kept in float16
EXACT = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"}


def activations(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    """Normal values, some blocks of zeros, one far outlier."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    x[0, :32] = 0
    x[-1, -1] = 50.0
    return x


@pytest.mark.parametrize("kind", GGUF_FORMATS)
@pytest.mark.parametrize("shape", [(48, 512), (37, 256)])
def test_every_gguf_type_multiplies_as_int8_arithmetic_says(kind, shape, random_blocks, round_to_int8):
    raw = random_blocks(kind, *shape)
    weight = cpu.pack([raw], dtype=torch.float32, device="cpu")
    for rows in (1, 2, 7, 70):
        x = activations(rows, shape[1])
        expected = round_to_int8(x.numpy()) @ dequantize(raw).double().numpy().T
        error = np.abs(cpu.linear(x, weight).numpy() - expected).max() / np.abs(expected).max()
        assert error < (1e-5 if kind in EXACT else 1e-3), (rows, error)


@pytest.mark.parametrize("kind", [*GGUF_FORMATS, "BF16", "F16", "F32"])
def test_a_row_is_the_same_bits_alone_and_among_others(kind, random_blocks):
    """Alone, among few, among many; of more blocks than are unpacked at a time, and an odd number of tiles."""
    if kind in GGUF_FORMATS:
        weight = cpu.pack([random_blocks(kind, 80, 768)], dtype=torch.float32, device="cpu")
    else:
        dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[kind]
        weight = cpu.pack([torch.randn(80, 768)], dtype=dtype, device="cpu")
    x = activations(71, 768)
    together = cpu.linear(x, weight)
    for first, last in [(0, 1), (70, 71), (3, 5), (10, 14), (5, 13), (6, 15), (20, 37)]:
        assert torch.equal(cpu.linear(x[first:last].clone(), weight), together[first:last])


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_K", "BF16"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_more_rows_than_an_item_of_work_has(kind, threads, random_blocks):
    """The last item has any number of rows. Three pairs of tiles are no whole number for each of two threads."""
    raw = torch.randn(80, 96).bfloat16() if kind == "BF16" else random_blocks(kind, 80, 256)
    weight = cpu.pack([raw], dtype=torch.bfloat16, device="cpu")
    x = activations(777, weight.shape[1])
    expected = torch.cat([cpu.linear(part.contiguous(), weight) for part in x.split(16)])
    before = cpu.describe()["threads"]
    cpu.set_threads(threads)
    try:
        for rows in (777, 512, 515, 257, 256, 129, 65):
            assert torch.equal(cpu.linear(x[:rows], weight), expected[:rows]), rows
    finally:
        cpu.set_threads(before)


@pytest.mark.parametrize("columns", [32, 100, 513])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-5), (torch.float16, 1e-5), (torch.float32, 1e-5)])
def test_floating_point_weights(columns, dtype, tolerance):
    raw = torch.randn(53, columns, generator=torch.Generator().manual_seed(0))
    weight = cpu.pack([raw], dtype=dtype, device="cpu")
    held = raw.to(dtype).double()
    for rows in (1, 3, 19):
        x = activations(rows, columns)
        rounded = x.bfloat16() if dtype == torch.bfloat16 else x
        expected = rounded.double() @ held.T
        torch.testing.assert_close(cpu.linear(x, weight).double(), expected, atol=tolerance * 100, rtol=tolerance)


def test_parts_of_several_types_with_a_bias(random_blocks, round_to_int8):
    parts = [random_blocks("Q5_0", 40, 256), random_blocks("Q8_0", 8, 256), torch.randn(24, 256)]
    weight = cpu.pack(parts, dtype=torch.float32, device="cpu")
    bias = torch.randn(72)
    for rows in (1, 12):
        x = activations(rows, 256)
        whole = x.double().numpy()
        columns = [
            (round_to_int8(whole) if isinstance(part, QuantTensor) else whole) @ dequantize(part).double().numpy().T
            for part in parts
        ]
        expected = np.concatenate(columns, axis=1) + bias.numpy()
        np.testing.assert_allclose(cpu.linear(x, weight, bias).numpy(), expected, rtol=1e-4, atol=1e-3)


def test_weights_are_held_once_and_tightly(random_blocks):
    # (bits in the file, bits packed) a weight
    for kind, bits in {"Q4_0": 4.5, "Q4_1": 5, "Q4_K": 5, "Q5_0": 5.5, "Q6_K": 7, "Q8_0": 8.5}.items():
        weight = cpu.pack([random_blocks(kind, 64, 512)], dtype=torch.float32, device="cpu")
        assert weight.nbytes == 64 * 512 * bits / 8, kind


@pytest.mark.parametrize("kind", [*GGUF_FORMATS, "BF16", "F16", "F32"])
def test_embedding_reads_rows_of_the_packed_weight(kind, random_blocks):
    if kind in GGUF_FORMATS:
        raw, dtype = random_blocks(kind, 50, 512), torch.float32
        values = dequantize(raw)
    else:
        dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[kind]
        raw = torch.randn(50, 100)
        values = raw.to(dtype).float()
    weight = cpu.pack([raw], dtype=dtype, device="cpu")
    ids = torch.tensor([0, 49, 17, 17, 31], dtype=torch.int32)
    ours = cpu.embedding(ids, weight, 3.0)
    tolerance = 1e-6 if kind not in GGUF_FORMATS or kind in EXACT else 1e-3
    torch.testing.assert_close(ours, values[ids.long()] * 3.0, rtol=tolerance, atol=tolerance)


def test_nan_in_an_activation_reaches_only_its_row(random_blocks):
    for weight in (
        cpu.pack([random_blocks("Q4_1", 32, 256)], dtype=torch.float32, device="cpu"),
        cpu.pack([torch.randn(32, 256)], dtype=torch.bfloat16, device="cpu"),
    ):
        x = activations(9, 256)
        clean = cpu.linear(x, weight)
        x[4, 100] = torch.nan
        out = cpu.linear(x, weight)
        assert out[4].isnan().all()
        kept = torch.arange(9) != 4
        assert torch.equal(out[kept], clean[kept])


def test_what_cannot_be_packed_is_refused(random_blocks):
    with pytest.raises(ValueError, match="as many columns"):
        cpu.pack([torch.zeros(4, 32), torch.zeros(4, 64)], dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match="float64"):
        cpu.pack([torch.zeros(4, 32)], dtype=torch.float64, device="cpu")
    weight = cpu.pack([random_blocks("Q8_0", 16, 64)], dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match="96 columns"):
        cpu.linear(torch.zeros(1, 96), weight)
    with pytest.raises(TypeError, match="float64"):
        cpu.linear(torch.zeros(1, 64, dtype=torch.float64), weight)
