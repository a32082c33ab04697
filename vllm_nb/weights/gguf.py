"""GGUF files, versions 2 and 3: metadata and tensors, memory mapped.

The file is not trusted: every count, length and offset is checked against the file's size before it is used, so a
damaged or hostile file gives a ModelLoadError, never a crash and never an allocation larger than the file.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import contextlib
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from struct import error as StructError
from typing import Any

import numpy as np
import torch

from vllm_nb.errors import ModelLoadError
from vllm_nb.kernels.quant import BLOCK_SIZES, QuantTensor, RawTensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)

# The numbers of ggml's tensor types (ggml.h), for the types there are kernels for.
TENSOR_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    20: "IQ4_NL",
    30: "BF16",
}
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_HEADER = Struct("<II")  # magic, version
_COUNTS = Struct("<QQ")  # tensors, metadata entries
_U32 = Struct("<I")
_U64 = Struct("<Q")
_ARRAY = Struct("<IQ")  # element type, length

# Metadata value types by number; STRING and ARRAY are read by hand.
_NUMBERS = {
    0: Struct("<B"),
    1: Struct("<b"),
    2: Struct("<H"),
    3: Struct("<h"),
    4: Struct("<I"),
    5: Struct("<i"),
    6: Struct("<f"),
    7: Struct("<?"),
    10: Struct("<Q"),
    11: Struct("<q"),
    12: Struct("<d"),
}
_STRING = 8
_ARRAY_TYPE = 9

_DEFAULT_ALIGNMENT = 32
_MAX_STRING = 2**26  # bytes; the longest there are, chat templates, have some 2**15
_MAX_ARRAY = 2**24  # elements; the longest there are, merges, have some 2**19
_MAX_NESTING = 4
_MIN_ENTRY = 8 + 4 + 1  # bytes of a metadata entry: key length, type, value
_MIN_TENSOR = 8 + 4 + 8 + 4 + 8  # bytes of a tensor's description with one dimension


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. shape: slowest dimension first, as in NumPy; start: byte in the file."""

    name: str
    type: str  # a key of BLOCK_SIZES
    shape: tuple[int, ...]
    start: int
    nbytes: int


class GgufFile:
    """One open GGUF file.

    metadata: key -> int, float, bool, str, or a list of these. tensors: name -> TensorInfo.
    Raises ModelLoadError when the file is missing, cut short, or not what the format says.
    """

    def __init__(self, path: Path):
        self.path = path
        self._data = _map(path)
        reader = _Reader(path, self._data)
        try:
            self.version, num_tensors, num_entries = reader.header()
            self.metadata = reader.metadata(num_entries)
            self.tensors = reader.tensors(num_tensors, _alignment(path, self.metadata))
        except ModelLoadError:
            self.close()
            raise

    def tensor(self, name: str) -> RawTensor:
        """A view of the mapped file: a torch tensor for F32, F16 and BF16, else QuantTensor. The name must exist."""
        info = self.tensors[name]
        # NumPy's array keeps the map from being closed below the tensor; torch.frombuffer would not.
        data = np.frombuffer(self._data, np.uint8, count=info.nbytes, offset=info.start)
        if info.type in _PLAIN:
            return torch.from_numpy(data).view(_PLAIN[info.type]).reshape(info.shape)
        if len(info.shape) != 2:
            raise ModelLoadError(
                f"The tensor {name!r} in {self.path} is {info.type} with {len(info.shape)} dimensions; "
                "quantised tensors are supported with two."
            )
        rows, columns = info.shape
        data.flags.writeable = False
        return QuantTensor(info.type, (rows, columns), data.reshape(rows, -1))

    def close(self) -> None:
        """Let go of the file; tensors in use keep their part of it mapped until they are freed."""
        with contextlib.suppress(BufferError):
            self._data.close()


def _map(path: Path) -> mmap.mmap:
    """The file's bytes. Copy-on-write, because torch wants writable buffers; nothing is ever written."""
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
            if start != MAGIC:
                what = f"starts with {start!r}, not {MAGIC!r}" if start else "is empty"
                raise ModelLoadError(f"{path} is not a GGUF file: it {what}.")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}.") from error


def _alignment(path: Path, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    # At least 8, so that float tensors lie where the processor wants them.
    if not isinstance(value, int) or value < 8 or value & (value - 1):
        raise ModelLoadError(f"The field 'general.alignment' in {path} must be a power of two from 8, not {value!r}.")
    return value


class _Reader:
    """Reads the file front to back, up to the tensors' data."""

    def __init__(self, path: Path, data: mmap.mmap):
        self._path = path
        self._data = data
        self._size = len(data)
        self._at = 0

    def header(self) -> tuple[int, int, int]:
        """Version, number of tensors, number of metadata entries."""
        _, version = self._unpack(_HEADER)
        if version & 0xFFFF == 0:
            raise self._error("is a big-endian GGUF; convert it with gguf-convert-endian from the package gguf")
        if version not in VERSIONS:
            raise self._error(f"is GGUF version {version}; versions {' and '.join(map(str, VERSIONS))} are supported")
        num_tensors, num_entries = self._unpack(_COUNTS)
        self._check_count(num_tensors, _MIN_TENSOR, "tensors")
        self._check_count(num_entries, _MIN_ENTRY, "metadata entries")
        return version, num_tensors, num_entries

    def metadata(self, count: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for _ in range(count):
            key = self._string()
            if key in entries:
                raise self._error(f"has the metadata key {key!r} twice")
            entries[key] = self._value(self._unpack(_U32)[0])
        return entries

    def tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        described = [self._description() for _ in range(count)]
        start = -(-self._at // alignment) * alignment
        infos: dict[str, TensorInfo] = {}
        for name, kind, shape, offset in described:
            if name in infos:
                raise self._error(f"has the tensor {name!r} twice")
            infos[name] = self._located(name, kind, shape, offset, start, alignment)
        return infos

    def _description(self) -> tuple[str, int, tuple[int, ...], int]:
        """Name, type number, shape and offset of a tensor."""
        name = self._string()
        (num_dims,) = self._unpack(_U32)
        if not 1 <= num_dims <= 4:
            raise self._error(f"has a tensor {name!r} of {num_dims} dimensions; from 1 to 4 are allowed")
        dims = [self._unpack(_U64)[0] for _ in range(num_dims)]
        (kind,) = self._unpack(_U32)
        (offset,) = self._unpack(_U64)
        return name, kind, tuple(reversed(dims)), offset

    def _located(
        self, name: str, kind: int, shape: tuple[int, ...], offset: int, start: int, alignment: int
    ) -> TensorInfo:
        type_name = TENSOR_TYPES.get(kind)
        if type_name is None:
            raise self._error(
                f"has a tensor {name!r} of type {_ggml_type_name(kind)}; supported are {', '.join(BLOCK_SIZES)}"
            )
        block_values, block_bytes = BLOCK_SIZES[type_name]
        if min(shape) < 1 or shape[-1] % block_values:
            raise self._error(
                f"has a tensor {name!r} of the shape {list(shape)}; a row of {type_name} holds a multiple of "
                f"{block_values} values, and at least that many"
            )
        nbytes = math.prod(shape) // block_values * block_bytes
        if offset % alignment or start + offset + nbytes > self._size:
            raise self._error(
                f"has a tensor {name!r} at offset {offset} of {nbytes} bytes, which does not lie within the file's "
                f"{self._size} bytes on a multiple of {alignment}; the file is probably cut short"
            )
        return TensorInfo(name, type_name, shape, start + offset, nbytes)

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY_TYPE:
            return self._array(depth + 1)
        return self._unpack(self._number_format(kind))[0]

    def _array(self, depth: int) -> list[Any]:
        if depth > _MAX_NESTING:
            raise self._error(f"has metadata arrays nested more than {_MAX_NESTING} deep")
        kind, count = self._unpack(_ARRAY)
        if count > _MAX_ARRAY:
            raise self._error(f"has a metadata array of {count} elements; at most {_MAX_ARRAY} are allowed")
        if kind == _STRING:
            return self._strings(count)
        if kind == _ARRAY_TYPE:
            self._check_count(count, _ARRAY.size, "array elements")
            return [self._array(depth + 1) for _ in range(count)]
        form = self._number_format(kind)
        self._check_count(count, form.size, "array elements")
        numbers = np.frombuffer(self._data, np.dtype(form.format), count=count, offset=self._at)
        self._at += numbers.nbytes
        return numbers.tolist()

    def _strings(self, count: int) -> list[str]:
        """Written for speed: a vocabulary has some 10**5 strings, and merges some more."""
        self._check_count(count, _U64.size, "array elements")
        data, at, size, length_at = self._data, self._at, self._size, _U64.unpack_from
        strings = []
        try:
            for _ in range(count):
                start = at + 8
                at = start + length_at(data, at)[0]
                if at > size or at - start > _MAX_STRING:
                    raise self._bad_length(at - start)
                strings.append(data[start:at].decode())
        except StructError as error:
            raise self._cut_short() from error
        except UnicodeDecodeError as error:
            raise self._error(f"has a text that is not valid UTF-8 near byte {start}") from error
        self._at = at
        return strings

    def _string(self) -> str:
        (length,) = self._unpack(_U64)
        start, end = self._at, self._at + length
        if end > self._size or length > _MAX_STRING:
            raise self._bad_length(length)
        self._at = end
        try:
            return self._data[start:end].decode()
        except UnicodeDecodeError as error:
            raise self._error(f"has a text that is not valid UTF-8 near byte {start}") from error

    def _number_format(self, kind: int) -> Struct:
        form = _NUMBERS.get(kind)
        if form is None:
            raise self._error(f"has a metadata value of the unknown type {kind} near byte {self._at}")
        return form

    def _unpack(self, form: Struct) -> tuple[Any, ...]:
        try:
            values = form.unpack_from(self._data, self._at)
        except StructError as error:
            raise self._cut_short() from error
        self._at += form.size
        return values

    def _check_count(self, count: int, smallest: int, what: str) -> None:
        """`count` things of at least `smallest` bytes must fit what is left of the file."""
        if count * smallest > self._size - self._at:
            raise self._error(
                f"promises {count} {what}, more than fit in {self._size} bytes; it is cut short or damaged"
            )

    def _bad_length(self, length: int) -> ModelLoadError:
        if length > _MAX_STRING:
            return self._error(f"has a text of {length} bytes; at most {_MAX_STRING} are allowed")
        return self._cut_short()

    def _cut_short(self) -> ModelLoadError:
        return self._error(f"ends at byte {self._size}, before its description does; it is cut short or damaged")

    def _error(self, problem: str) -> ModelLoadError:
        return ModelLoadError(f"The file {self._path} {problem}.")


def _ggml_type_name(kind: int) -> str:
    from gguf import GGMLQuantizationType  # 60 ms; only an error needs it

    with contextlib.suppress(ValueError):
        return GGMLQuantizationType(kind).name
    return f"number {kind}"
