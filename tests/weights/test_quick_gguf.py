"""The quicker reader that the oracle's tests use reads what gguf-py's own does."""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from vllm_nb.kernels.quant import BLOCK_SIZES

METADATA = {
    "a.text": "naïve 🎉",
    "a.yes": True,
    "a.int": -7,
    "a.float": 0.25,
    "a.texts": ["", "one", "zwei ü", "\n"],
    "a.ints": [3, -1, 2**30],
    "a.floats": [0.5, -1.5],
    "a.flags": [True, False, True],
}


def write(path: Path, rng: np.random.Generator) -> None:
    writer = GGUFWriter(path, "llama")
    for key, value in METADATA.items():
        adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_int32, float: writer.add_float32}
        (writer.add_array if isinstance(value, list) else adders[type(value)])(key, value)
    for kind, (block, size) in BLOCK_SIZES.items():
        raw = np.frombuffer(rng.bytes(3 * 512 // block * size), np.uint8).reshape(3, -1)
        writer.add_tensor(f"{kind}.weight", raw, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_it_reads_what_gguf_py_reads(tmp_path: Path, quick_gguf) -> None:
    path = tmp_path / "small.gguf"
    write(path, np.random.default_rng(0))
    theirs = gguf.GGUFReader(path)
    with quick_gguf():
        ours = gguf.GGUFReader(path)
    assert type(ours) is not type(theirs)
    assert {key: ours.fields[key].contents() for key in METADATA} == METADATA
    assert list(ours.fields) == list(theirs.fields)
    for key, expected in theirs.fields.items():
        field = ours.fields[key]
        assert (field.offset, field.types, field.data) == (expected.offset, expected.types, expected.data), key
        for part, other in zip(field.parts, expected.parts, strict=True):
            assert part.dtype == other.dtype, key
            assert part.tolist() == other.tolist(), key
    assert len(ours.tensors) == len(BLOCK_SIZES)
    for tensor, expected in zip(ours.tensors, theirs.tensors, strict=True):
        assert (tensor.name, tensor.tensor_type) == (expected.name, expected.tensor_type)
        assert (tensor.n_elements, tensor.n_bytes) == (expected.n_elements, expected.n_bytes)
        assert tensor.shape.tolist() == expected.shape.tolist()
        assert tensor.data.dtype == expected.data.dtype
        assert tensor.data.tobytes() == expected.data.tobytes()
