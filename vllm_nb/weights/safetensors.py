"""A model in a folder as Hugging Face lays it out: config.json, tokenizer, and weights in safetensors files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from vllm_nb.errors import ModelLoadError
from vllm_nb.kernels.quant import RawTensor
from vllm_nb.weights import names
from vllm_nb.weights.checkpoint import TensorHeader
from vllm_nb.weights.config_hf import read_folder
from vllm_nb.weights.fields import Fields, read_json
from vllm_nb.weights.folder import weight_files

if TYPE_CHECKING:
    from vllm_nb.text.tokenizer import Tokenizer

_DTYPES = ("F32", "F16", "BF16")


class SafetensorsCheckpoint:
    """See Checkpoint."""

    def __init__(self, folder: Path):
        self.path = folder
        if not (folder / "config.json").is_file():
            raise ModelLoadError(f"{folder} has no config.json: it is not the folder of a model.")
        self.config, self.generation = read_folder(folder)
        self.name = _model_name(folder)
        self._files = {file: _open(folder / file) for file in weight_files(folder)}
        self._stored = _index(self._files)

    def names(self) -> set[str]:
        return set(self._stored)

    def describe(self, name: str) -> TensorHeader:
        file, stored = self._place(name)
        header = self._files[file].get_slice(stored)
        return TensorHeader(header.get_dtype(), tuple(header.get_shape()))

    def tensor(self, name: str) -> RawTensor:
        file, stored = self._place(name)
        try:
            dtype = self._files[file].get_slice(stored).get_dtype()
            if dtype not in _DTYPES:
                raise ModelLoadError(
                    f"The tensor {stored!r} in {self.path / file} is of the type {dtype}, which is not supported yet; "
                    f"supported are {', '.join(_DTYPES)}."
                )
            tensor = self._files[file].get_tensor(stored)
        except SafetensorError as error:
            raise ModelLoadError(f"The tensor {stored!r} in {self.path / file} cannot be read: {error}.") from error
        if self.config.architecture == "gemma3" and name.endswith("norm.weight"):
            return tensor.float() + 1  # stored as w, multiplied as 1 + w
        return tensor

    def _place(self, name: str) -> tuple[str, str]:
        """The file and the name in it."""
        if name not in self._stored:
            raise ModelLoadError(f"There is no tensor {name!r} in {self.path}.")
        return self._stored[name]

    def load_tokenizer(self) -> "Tokenizer":
        from vllm_nb.text.tokenizer import Tokenizer

        return Tokenizer.from_folder(self.path)

    def chat_template(self) -> str | None:
        """chat_template.jinja, else what chat_template.json (multimodal models) or tokenizer_config.json holds."""
        source = self.path / "chat_template.jinja"
        if source.is_file():
            return _read_text(source)
        for name in ("chat_template.json", "tokenizer_config.json"):
            path = self.path / name
            if path.is_file() and (template := _template(Fields(read_json(path), path))):
                return template
        return None

    def close(self) -> None:
        self._files.clear()
        self._stored.clear()


def _open(path: Path) -> Any:
    """An open file that is mapped, not read."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path} is not a valid safetensors file: {error}.") from error


def _index(files: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Canonical name -> file, name in it."""
    stored = {}
    for file, handle in files.items():
        for name in handle.keys():  # noqa: SIM118 - no mapping, it only has keys()
            canonical = names.from_hugging_face(name)
            if canonical is not None:
                stored[canonical] = (file, name)
    return stored


def _template(config: Fields) -> str | None:
    """The template in tokenizer_config.json: a text, or one text a purpose, of which "default" is for chats."""
    templates = config.values.get("chat_template")
    if isinstance(templates, list):
        named = {item.get("name"): item.get("template") for item in templates if isinstance(item, dict)}
        config = Fields({"chat_template": named.get("default")}, config.path)
    return config.text("chat_template", None)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}.") from error


def _model_name(folder: Path) -> str:
    """The folder's name; in the hub's cache (models--org--name/snapshots/revision) the model's."""
    folder = folder.resolve()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return folder.name
