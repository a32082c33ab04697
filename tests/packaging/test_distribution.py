"""What a wheel, an sdist and an editable install put on a machine: kernels/ as vllm_nb.kernels, and no more."""

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

# Asked of each installation, away from the repository.
PROBE = """
import importlib.util, json, sys, vllm_nb, vllm_nb.kernels.reference, vllm_nb.kernels.quant
from importlib.metadata import distribution
found = importlib.util.find_spec("kernels")
print(json.dumps({
    "vllm_nb": vllm_nb.__file__,
    "kernels": vllm_nb.kernels.__file__,
    "backend": vllm_nb.kernels.reference.__name__,
    "top level": sorted(distribution("vllm-nb").read_text("top_level.txt").split()),
    "kernels at the top": found and [found.origin, *(found.submodule_search_locations or [])],
}))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory, root, repository_files) -> Path:
    """A copy of the repository, so that a build can't pick up or leave anything here."""
    copy = tmp_path_factory.mktemp("tree")
    for path in repository_files:
        target = copy / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return copy


@pytest.fixture(scope="module")
def dist(tree, tmp_path_factory) -> Path:
    """A folder with the sdist, and with the wheel that was built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree)
    return out


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def sdist(dist) -> Path:
    return next(dist.glob("*.tar.gz"))


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(where: Path, *arguments: object) -> Path:
    """The python of a new virtual environment that sees the dependencies installed here, but not the package."""
    run(sys.executable, "-m", "venv", "--without-pip", where)
    python = where / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-qq",
        "--no-index",
        "--no-deps",
        "--ignore-installed",
    ]
    run(*pip, "--no-build-isolation", *arguments)
    return python


def probe(python: Path, cwd: Path) -> dict:
    return json.loads(run(python, "-I", "-c", PROBE, cwd=cwd))


@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_kernels_install_below_the_package(kind, request, tmp_path):
    if kind == "editable":
        source = request.getfixturevalue("tree")
        python = install(tmp_path / "env", "--editable", source)
        home, kernels = source / "vllm_nb", source / "kernels"
    else:
        python = install(tmp_path / "env", request.getfixturevalue(kind))
        home = next((tmp_path / "env").glob("lib/python*/site-packages")) / "vllm_nb"
        kernels = home / "kernels"
    found = probe(python, tmp_path)
    assert Path(found["vllm_nb"]) == home / "__init__.py"
    assert Path(found["kernels"]) == kernels / "__init__.py"
    assert found["backend"] == "vllm_nb.kernels.reference"
    assert found["top level"] == ["vllm_nb"]
    assert found["kernels at the top"] is None


def test_the_wheel_holds_the_package_and_nothing_else(wheel, root):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        recorded = {line.rsplit(",", 2)[0] for line in archive.read(record).decode().splitlines()}
        licence = next(name for name in names if name.endswith("/licenses/LICENSE"))
        assert archive.read(licence) == (root / "LICENSE").read_bytes()
    assert recorded == names
    info = record.removesuffix("RECORD")
    assert not {name for name in names if not name.startswith(("vllm_nb/", info))}
    assert "vllm_nb/py.typed" in names


def test_no_file_of_the_package_is_forgotten(wheel, repository_files, root):
    """Sources, and whatever lies beside them (scripts of panels, say), are all in the wheel."""
    expected = set()
    for path in repository_files:
        relative = path.relative_to(root)
        if relative.parts[0] == "vllm_nb":
            expected.add(relative.as_posix())
        elif relative.parts[0] == "kernels":
            expected.add(f"vllm_nb/{relative.as_posix()}")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("vllm_nb/")}
    assert packed == expected


def test_every_package_is_listed(repository_files, root):
    """The same at the source: a new folder has to be added to `packages`."""
    listed = set(tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {p.relative_to(root).parent for p in repository_files if p.suffix == ".py"}
    names = {
        folder.as_posix().replace("/", ".") for folder in folders if folder.parts[:1] in {("vllm_nb",), ("kernels",)}
    }
    assert listed == {
        name.replace("kernels", "vllm_nb.kernels", 1) if name.startswith("kernels") else name for name in names
    }


def test_the_sdist_can_build_the_wheel(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "kernels/__init__.py", "vllm_nb/__init__.py"} <= names


def test_the_metadata_of_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
        scripts = archive.read(name.replace("METADATA", "entry_points.txt")).decode()
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    needed = [r for r in requirements if r.marker is None]
    assert {"torch", "numpy"} <= {r.name for r in needed}
    assert not [str(r) for r in needed if ">=" not in {s.operator for s in r.specifier}]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "vllm-nb = vllm_nb.cli:main" in scripts


def test_the_environment_of_these_tests_is_editable_and_has_no_kernels_at_the_top(root):
    script = "import importlib.util as u, vllm_nb.kernels as k; print(k.__file__, u.find_spec('kernels'))"
    assert run(sys.executable, "-I", "-c", script, cwd=root).split() == [str(root / "kernels" / "__init__.py"), "None"]
