"""A model's files, whatever their format: configuration, tensors, tokenizer and chat template."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vllm_nb.errors import ModelLoadError
from vllm_nb.models.config import GenerationDefaults, ModelConfig

if TYPE_CHECKING:
    from vllm_nb.kernels.quant import RawTensor
    from vllm_nb.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a file says of a tensor. type: a key of kernels.quant.BLOCK_SIZES, or another that is not supported."""

    type: str
    shape: tuple[int, ...]


class Checkpoint(Protocol):
    """What the engine asks of a model's files. Everything raises ModelLoadError.

    name: for humans and /v1/models, such as "SmolLM2-135M-Instruct". path: the folder, or the (first) GGUF file.
    """

    config: ModelConfig
    generation: GenerationDefaults
    name: str
    path: Path

    def names(self) -> set[str]:
        """The tensors there are, by Hugging Face's names ("model.layers.0.self_attn.q_proj.weight")."""

    def describe(self, name: str) -> TensorHeader:
        """Type and shape of a tensor, without reading it."""

    def tensor(self, name: str) -> "RawTensor":
        """One tensor, memory mapped where its form allows.

        Rows are in the order of Hugging Face's models, and norm weights are the factor that multiplies, whatever the
        file holds: models need not know the format.
        """

    def load_tokenizer(self) -> "Tokenizer": ...

    def chat_template(self) -> str | None:
        """The Jinja source, None for a model without one."""

    def close(self) -> None:
        """Let go of the files. Tensors handed out stay valid."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder of safetensors or a GGUF file; of a split GGUF, any of its parts."""
    if path.is_dir():
        from vllm_nb.weights.safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint(path)
    if path.suffix == ".safetensors":
        raise ModelLoadError(f"{path} holds tensors alone; give its folder, with config.json and the tokenizer in it.")
    from vllm_nb.weights.gguf_checkpoint import GgufCheckpoint

    return GgufCheckpoint(path)
