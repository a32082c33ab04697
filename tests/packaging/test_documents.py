"""What the documents say exists, exists, and what the README shows runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
REFERENCE = re.compile(r"`([\w/]+\.py): ([\w.]+)`")  # `engine/scheduler.py: Scheduler.schedule`
TREES = ["vllm_nb", "."]  # what such a path is relative to


def definitions(path: Path) -> set[str]:
    """Names of a module, and of its classes with a dot."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.ClassDef():
                methods = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
                names |= {node.name, *(f"{node.name}.{method.name}" for method in methods)}
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                names.add(node.name)
    return names


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_functions_exist(document, root):
    found = REFERENCE.findall((root / document).read_text())
    wrong = []
    for file, name in found:
        path = next((root / tree / file for tree in TREES if (root / tree / file).is_file()), None)
        if path is None or name not in definitions(path):
            wrong.append(f"{file}: {name}")
    assert not wrong
    assert found or document == "README.md"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_exist(document, root):
    text = (root / document).read_text()
    paths = re.findall(r"`((?:tests|vllm_nb|kernels|notebooks|scripts|binder)/[\w./]*)`", text)
    links = re.findall(r"\]\((?!#|https?:)([^)]+)\)", text)
    assert not [path for path in [*paths, *links] if "NAME" not in path and not (root / path).exists()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_make_targets_exist(document, root):
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    named = set(
        re.findall(r"(?:`|^|\s)make ([a-z-]+)", "\n".join(commands((root / document).read_text())), re.MULTILINE)
    )
    assert named
    assert named <= targets


def commands(text: str) -> list[str]:
    """Code spans and the lines of shell blocks: prose may say "make" too."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [*re.findall(r"`(make[^`]*)`", text), *"".join(blocks).splitlines()]


def python_blocks(root: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)


def test_the_script_in_the_readme_runs(root, tmp_path):
    (script,) = [block for block in python_blocks(root) if "EngineBuilder" in block]
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "prompt_tokens=" in done.stdout
    assert done.stderr == ""


def test_the_server_in_the_readme_answers_its_client(root, tmp_path):
    (script,) = [block for block in python_blocks(root) if "OpenAI" in block]
    serve = [str(Path(sys.executable).with_name("vllm-nb")), "serve", "smollm2", "--port", "0"]
    with subprocess.Popen(serve, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            said = []
            for line in server.stdout:
                said.append(line)
                if address := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                    break
            else:
                pytest.fail(f"it ended: {''.join(said)}")
            client = script.replace(":8000/", f":{address[1]}/")
            assert client != script
            done = subprocess.run([sys.executable, "-c", client], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip()
        finally:
            server.terminate()
            server.wait(30)
