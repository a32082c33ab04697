"""Models of the Hugging Face hub: in its cache on this machine, else downloaded. Uses huggingface_hub if installed."""

import difflib
import importlib.util
import re
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread
from typing import Any

from vllm_nb.errors import ModelLoadError
from vllm_nb.weights.download import report_growth, size_of
from vllm_nb.weights.folder import INDEX, WEIGHTS, weight_files
from vllm_nb.weights.names import gguf_parts

_TIMEOUT = 10  # seconds for an answer
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_SMALL = re.compile(r"[^/]*\.(json|jinja|txt|model)")  # configuration and tokenizer, in the top folder


def installed() -> bool:
    return importlib.util.find_spec("huggingface_hub") is not None


def cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def find(repo_id: str, gguf: str | None) -> Path | None:
    """What earlier downloads left: the (first) GGUF file, or the folder with everything a model needs; else None."""
    if gguf is not None:
        paths = [_cached(repo_id, name) for name in _with_all_parts(gguf)]
        return paths[0] if all(paths) else None
    config = _cached(repo_id, "config.json")
    if config is None:
        return None
    folder = config.parent
    try:
        weight_files(folder)
    except ModelLoadError:
        return None
    return folder if any((folder / name).exists() for name in _TOKENIZERS) else None


def download(repo_id: str, gguf: str | None) -> Path:
    """Fetch what `find` looks for. Raises ModelLoadError saying why that failed."""
    from huggingface_hub import errors

    try:
        sizes = _repository_files(repo_id)
        files = _with_all_parts(_existing(gguf, sizes)) if gguf else _model_files(sizes)
        paths = _fetch(repo_id, files, sum(sizes[file] or 0 for file in files if not _cached(repo_id, file)))
    except ModelLoadError:
        raise
    except errors.GatedRepoError as error:
        raise ModelLoadError(
            "its makers ask for an agreement: accept it on the model's page, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelLoadError("there is no such repository, or it is private: `hf auth login`") from error
    except Exception as error:  # the hub's own errors, httpx's and requests', by version: each means no download
        raise ModelLoadError(f"{type(error).__name__}: {_first_line(error)}") from error
    return paths[0] if gguf else paths[0].parent


def _cached(repo_id: str, file: str) -> Path | None:
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        path = try_to_load_from_cache(repo_id, file)
    except errors.HFValidationError:  # not an id: downloading will say so
        return None
    return Path(path) if isinstance(path, str) else None


def _repository_files(repo_id: str) -> dict[str, int | None]:
    """File -> bytes."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo_id, timeout=_TIMEOUT, files_metadata=True)
    return {sibling.rfilename: sibling.size for sibling in info.siblings or []}


def _existing(gguf: str, sizes: dict[str, Any]) -> str:
    if gguf in sizes:
        return gguf
    there = sorted(name for name in sizes if name.endswith(".gguf"))
    close = difflib.get_close_matches(gguf, there, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(there) or 'no GGUF files'}"
    raise ModelLoadError(f"the repository has no file {gguf}; {hint}")


def _with_all_parts(gguf: str) -> list[str]:
    folder, slash, name = gguf.rpartition("/")
    return [folder + slash + part for part in gguf_parts(name)]


def _model_files(sizes: dict[str, Any]) -> list[str]:
    """Small files first: once the weights are there, everything is."""
    small = sorted(name for name in sizes if _SMALL.fullmatch(name))
    weights = sorted(name for name in sizes if _SHARD.fullmatch(name)) if INDEX in sizes else [WEIGHTS]
    if "config.json" in sizes and weights and set(weights) <= sizes.keys():
        return ["config.json", *(name for name in small if name != "config.json"), *weights]
    ggufs = sorted(name for name in sizes if name.endswith(".gguf"))
    if ggufs:
        raise ModelLoadError(f"the repository has GGUF files; name one: {', '.join(ggufs)}")
    raise ModelLoadError("the repository has neither safetensors weights with a config.json, nor GGUF files")


def _fetch(repo_id: str, files: list[str], total: int) -> list[Path]:
    """Download the files, in a thread of its own, because progress is watched from here whatever the hub's version."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    done: Future[list[Path]] = Future()

    def work() -> None:
        try:
            done.set_result([Path(hf_hub_download(repo_id, file, etag_timeout=_TIMEOUT)) for file in files])
        except BaseException as error:
            done.set_exception(error)

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"
    before = size_of(folder)
    bars_shown = not are_progress_bars_disabled()
    disable_progress_bars()  # ours shows
    try:
        Thread(target=work, name="hub-download", daemon=True).start()
        report_growth(
            folder, f"Downloading {repo_id}", total or None, lambda timeout: bool(wait([done], timeout).done), before
        )
        return done.result()
    finally:
        if bars_shown:
            enable_progress_bars()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
