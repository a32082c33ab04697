"""Imports point down: notebook -> client -> (HTTP); server -> api -> engine -> models -> layers -> kernels."""

import ast
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

# Plain data and words that all layers share: these modules import one another and the standard library, nothing more.
WORDS = {"errors", "progress", "sampling", "messages", "chat_options", "outputs", "events", "config", "models.config"}

# What each part may import, besides itself and WORDS. `kernels` may not even import WORDS: it imports nothing of ours.
MAY_IMPORT: dict[str, set[str]] = {
    "kernels": set(),
    "layers": {"kernels"},
    "text": set(),
    "weights": {"text", "kernels"},
    "models": {"layers", "kernels", "weights"},
    "inspection": set(),
    "engine": {"models", "weights", "kernels", "inspection"},
    "api": {"engine", "models", "weights", "text", "inspection"},
    "server": {"api", "engine", "text", "weights", "connection"},
    "connection": set(),
    "client": {"connection", "inspection"},
    "console": set(),
    "catalogue": {"console", "weights"},
    "notebook": {"client", "catalogue", "inspection"},
    "bench": {"api", "engine", "client", "models", "weights", "text", "kernels"},
    "doctor": {"client", "console", "engine", "weights", "kernels"},
    "cli": {"api", "server", "client", "bench", "weights", "console"},
}

# The modules of the package's root that make up `api`.
API = {"api", "request", "response", "streams", "embeddings", "event_reader", "inside"}

# Upwards on purpose, each with its reason.
EXCEPTIONS = {
    ("vllm_nb.api", "server"): "Engine.start_server(), the seed API, imports the server when it is called",
    ("vllm_nb.inspection.observed", "notebook"): "Observed.panel() imports the panels when it is called",
    ("vllm_nb.client.completion", "notebook"): "Completion.panel() imports the panels when it is called",
    ("vllm_nb.inspection.timeline", "notebook"): "and so does Timeline.panel()",
}

# The kernel of a notebook holds no model, and a magic answers at once.
NEVER_IN_THE_NOTEBOOK = {
    "torch",
    "numpy",
    "numba",
    "transformers",
    "fastapi",
    "starlette",
    "uvicorn",
    "tokenizers",
    "gguf",
}


@dataclass(frozen=True)
class Import:
    importer: str  # vllm_nb.engine.runner
    imported: str  # vllm_nb.kernels.quant, or torch.nn
    where: str  # for the message


def module_name(path: Path, root: Path) -> str:
    parts = list(path.relative_to(root).with_suffix("").parts)
    if parts[0] == "kernels":
        parts.insert(0, "vllm_nb")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def runtime_nodes(tree: ast.AST):
    """All nodes but those below `if TYPE_CHECKING:`, which are never executed."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        skipped = node.body if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") else []
        todo.extend(child for child in ast.iter_child_nodes(node) if child not in skipped)


def imports_of(path: Path, root: Path, modules: set[str]):
    """Everything a file imports, anywhere in it; `from a import b` is a.b where that is a module."""
    name = module_name(path, root)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in runtime_nodes(ast.parse(path.read_text(), path)):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            joined = [f"{base}.{alias.name}" for alias in node.names]
            targets = [target if target in modules else base for target in joined]
        for target in targets:
            yield Import(name, target, f"{path.relative_to(root)}:{node.lineno}")


def part_of(module: str) -> str:
    """The part of the design a module belongs to; "words" for the shared vocabulary, "" for the package itself."""
    below = module.removeprefix("vllm_nb").removeprefix(".")
    first = below.partition(".")[0]
    if below in WORDS:
        return "words"
    return "api" if first in API else first


@pytest.fixture(scope="module")
def sources(repository_files, root) -> list[Path]:
    folders = {"vllm_nb", "kernels"}
    return [p for p in repository_files if p.suffix == ".py" and p.relative_to(root).parts[0] in folders]


@pytest.fixture(scope="module")
def imports(sources, root) -> list[Import]:
    modules = {module_name(path, root) for path in sources}
    return [found for path in sources for found in imports_of(path, root, modules)]


def test_every_module_has_its_place(sources, root):
    parts = {part_of(module_name(path, root)) for path in sources}
    assert parts - MAY_IMPORT.keys() == {"", "words"}


def test_imports_point_down(imports):
    offences = []
    for found in imports:
        importer, imported = part_of(found.importer), part_of(found.imported)
        if not found.imported.startswith("vllm_nb") or importer in {"", imported}:
            continue
        allowed = {"words"} if importer == "words" else MAY_IMPORT[importer] | {"words"}
        if importer == "kernels":
            allowed = set()
        if imported not in allowed and (found.importer, imported) not in EXCEPTIONS:
            offences.append(f"{found.where}: {found.importer} imports {found.imported}")
    assert not offences


def test_what_is_imported_of_ours_exists(imports, sources, root):
    """Also in functions, where only a call would tell."""
    names = {module_name(path, root) for path in sources}
    packages = {name.rpartition(".")[0] for name in names} | {"vllm_nb"}
    ours = [found for found in imports if found.imported.partition(".")[0] == "vllm_nb"]
    assert not [f"{found.where}: {found.imported}" for found in ours if found.imported not in names | packages]


def test_the_rules_themselves_point_down():
    """A cycle among the parts would make "down" meaningless."""
    done: set[str] = set()
    while todo := MAY_IMPORT.keys() - done:
        free = {part for part in todo if MAY_IMPORT[part] <= done}
        assert free, f"a cycle among {sorted(todo)}"
        done |= free


def test_each_exception_is_still_needed(imports):
    used = {(found.importer, part_of(found.imported)) for found in imports}
    assert EXCEPTIONS.keys() - used == set()


def test_the_notebook_side_never_imports_the_engines_libraries(imports):
    offences = [
        found.where
        for found in imports
        if part_of(found.importer) in {"", "words", "notebook", "client", "connection", "inspection"}
        and found.imported.partition(".")[0] in NEVER_IN_THE_NOTEBOOK
    ]
    assert not offences


def test_the_product_never_imports_transformers(imports):
    assert not [found.where for found in imports if found.imported.partition(".")[0] == "transformers"]


def test_numba_stays_in_the_cpu_kernels(imports):
    users = {found.importer for found in imports if found.imported.partition(".")[0] in {"numba", "llvmlite"}}
    assert not [module for module in users if not module.startswith("vllm_nb.kernels.cpu")]


LOAD = """
import json, sys
{statements}
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
EXTENSION = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "vllm_nb")
assert shell.find_cell_magic("vllm") and shell.find_line_magic("vllm")
"""


@pytest.mark.parametrize("statements", ["import vllm_nb", EXTENSION], ids=["import", "load_ext"])
def test_it_loads_without_the_heavy_libraries(statements, tmp_path):
    """Also not through something else that imports them."""
    command = [sys.executable, "-I", "-c", LOAD.format(statements=statements)]
    environment = {"PATH": "", "HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "vllm_nb" in loaded
    assert not loaded & (NEVER_IN_THE_NOTEBOOK | {"httpx", "matplotlib", "huggingface_hub"})
