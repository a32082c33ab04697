"""A model in one GGUF file, or in a file split into parts."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vllm_nb.errors import ModelLoadError
from vllm_nb.kernels.quant import QuantTensor, RawTensor
from vllm_nb.weights import names
from vllm_nb.weights.checkpoint import TensorHeader
from vllm_nb.weights.config_gguf import read_config, read_generation
from vllm_nb.weights.fields import Fields
from vllm_nb.weights.gguf import GgufFile

if TYPE_CHECKING:
    from vllm_nb.text.tokenizer import Tokenizer

_QUANTIZATION = re.compile(r"[-_.](i?q\d\w*|b?f16|f32|fp16|ud)$", re.IGNORECASE)
_NAMELESS = re.compile(r"(ggml[-_])?model|unsloth", re.IGNORECASE)

_FREQUENCIES = "rope_freqs.weight"  # part of the configuration, not a weight


class GgufCheckpoint:
    """See Checkpoint. path: the first part of a split model."""

    def __init__(self, path: Path):
        self._files = _open_parts(path)
        try:
            first = self._files[0]
            self.path = first.path
            self._holders = _index(self._files)
            infos = {name: file.tensors[name] for name, file in self._holders.items()}
            factors = self._holders[_FREQUENCIES].tensor(_FREQUENCIES) if _FREQUENCIES in infos else None
            self.config = read_config(first, infos, factors)
            self.generation = read_generation(first)
            self.name = _model_name(first)
            self._stored = {
                names.from_gguf(name, self.config.architecture): name for name in infos if name != _FREQUENCIES
            }
        except ModelLoadError:
            self.close()
            raise

    def names(self) -> set[str]:
        return set(self._stored)

    def describe(self, name: str) -> TensorHeader:
        stored = self._stored_name(name)
        info = self._holders[stored].tensors[stored]
        return TensorHeader(info.type, info.shape)

    def tensor(self, name: str) -> RawTensor:
        stored = self._stored_name(name)
        tensor = self._holders[stored].tensor(stored)
        if self.config.architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            return self._unpermuted(tensor, name)
        return tensor

    def _stored_name(self, name: str) -> str:
        if name not in self._stored:
            raise ModelLoadError(f"There is no tensor {name!r} in {self.path}.")
        return self._stored[name]

    def load_tokenizer(self) -> "Tokenizer":
        from vllm_nb.text.tokenizer import Tokenizer

        return Tokenizer.from_gguf(self._files[0].metadata)

    def chat_template(self) -> str | None:
        return Fields(self._files[0].metadata, self.path).text("tokenizer.chat_template", None)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _unpermuted(self, tensor: RawTensor, name: str) -> RawTensor:
        """The rows of q or k as Hugging Face orders them (a copy).

        llama.cpp turns neighbours (0,1), (2,3), ... of a head, Hugging Face its halves (0,D/2), (1,D/2+1), ..., and the
        conversion of Llama-like models to GGUF reorders the rows for that. Rows move whole, so blocks stay intact.
        """
        heads = self.config.num_heads if ".q_proj." in name else self.config.num_kv_heads
        rows = heads * self.config.head_dim
        if tensor.shape[0] != rows:
            raise ModelLoadError(f"The tensor {name!r} in {self.path} has {tensor.shape[0]} rows, not {rows}.")
        order = _half_split_order(heads, self.config.head_dim, self.config.rope.rotary_dim or self.config.head_dim)
        if isinstance(tensor, QuantTensor):
            return QuantTensor(tensor.type, tensor.shape, tensor.data[order])
        return tensor[order]


def _half_split_order(heads: int, head_dim: int, rotary_dim: int) -> np.ndarray:
    """For each row of [heads * head_dim] in half-split order, its row among interleaved pairs."""
    head = np.arange(head_dim)
    head[:rotary_dim] = head[:rotary_dim].reshape(-1, 2).T.ravel()
    return (np.arange(heads)[:, None] * head_dim + head).ravel()


def _open_parts(path: Path) -> list[GgufFile]:
    """All files of the model `path` belongs to, the first part first: the metadata is there."""
    siblings = [path.with_name(name) for name in names.gguf_parts(path.name)]
    missing = [part.name for part in siblings if not part.exists()]
    if missing and path.exists():
        listed = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise ModelLoadError(f"{path} is one of {len(siblings)} parts, of which are missing in its folder: {listed}.")
    files: list[GgufFile] = []
    try:
        files.extend(GgufFile(part) for part in siblings)
        _check_parts(files)
    except ModelLoadError:
        for file in files:
            file.close()
        raise
    return files


def _check_parts(files: list[GgufFile]) -> None:
    """What the parts say of themselves must agree with their names."""
    for number, file in enumerate(files):
        split = Fields(file.metadata, file.path, prefix="split.")
        count = split.integer("count", 0, low=0)
        if max(count, 1) != len(files):
            raise ModelLoadError(
                f"{file.path} says that it is one of {count} parts, but {len(files)} were found; the parts must lie in "
                "one folder, under the names they were made with: NAME-00001-of-00003.gguf and so on."
            )
        if split.integer("no", number, low=0) != number:
            raise split.error("no", f"must be {number}, as in the file's name (counted from 0)")


def _index(files: list[GgufFile]) -> dict[str, GgufFile]:
    """Tensor name -> the part that holds it."""
    holders: dict[str, GgufFile] = {}
    for file in files:
        twice = holders.keys() & file.tensors.keys()
        if twice:
            raise ModelLoadError(f"The tensor {min(twice)!r} in {file.path} is in an earlier part, too.")
        holders |= dict.fromkeys(file.tensors, file)
    return holders


def _model_name(file: GgufFile) -> str:
    """The file's name without part and quantisation; people name files better than general.name does."""
    name = names.gguf_stem(file.path.name)
    while (shorter := _QUANTIZATION.sub("", name)) != name:
        name = shorter
    if _NAMELESS.fullmatch(name):
        return Fields(file.metadata, file.path).text("general.name", name)
    return name
