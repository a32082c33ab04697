"""The hub: the real huggingface_hub, in processes of their own, talking to a small server here."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vllm_nb import progress
from vllm_nb.weights import huggingface
from vllm_nb.weights.download import report_growth, size_of

GGUF = b"GGUF" + bytes(100_000)
FILES = {
    "org/folder": {
        "config.json": b"{}", "tokenizer.json": b"{}", "generation_config.json": b"{}", "README.md": b"text",
        "model.safetensors.index.json": json.dumps({"weight_map": {"a": "model-1-of-2.safetensors",
                                                                   "b": "model-2-of-2.safetensors"}}).encode(),
        "model-1-of-2.safetensors": bytes(50_000), "model-2-of-2.safetensors": bytes(60_000),
        "consolidated.safetensors": bytes(10), "onnx/model.onnx": b"x",
    },
    "org/gguf": {
        "config.json": b"{}", "x-Q4_0.gguf": GGUF, "y-00001-of-00002.gguf": GGUF, "y-00002-of-00002.gguf": GGUF,
    },
    "org/pickles": {"config.json": b"{}", "pytorch_model.bin": b"x"},
}  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The three kinds of request a download makes: what is in a repository, and a file's head and body."""

    requests: list[str]
    gated = "org/gated"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0].strip("/")
        repo_id, _, file = path.partition("/resolve/main/")
        if path.startswith("api/models/"):
            self._repository(path.removeprefix("api/models/"))
        elif file in FILES.get(repo_id, {}):
            self._file(FILES[repo_id][file], body)
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _repository(self, repo_id: str) -> None:
        if repo_id not in FILES:
            code = "GatedRepo" if repo_id == self.gated else "RepoNotFound"
            self._send(403 if repo_id == self.gated else 404, b"", {"X-Error-Code": code})
            return
        siblings = [{"rfilename": name, "size": len(content)} for name, content in FILES[repo_id].items()]
        answer = {"id": repo_id, "modelId": repo_id, "sha": COMMIT, "siblings": siblings}
        self._send(200, json.dumps(answer).encode(), {})

    def _file(self, content: bytes, body: bool) -> None:
        headers = {"ETag": f'"{sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        self._send(200, content if body else b"", headers, len(content))

    def _send(self, status: int, content: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """Address, and the requests so far."""
    handler = type("RecordingHub", (Hub,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.requests  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


SCRIPT = """
import sys
from vllm_nb import progress
from vllm_nb.weights import huggingface
from vllm_nb.errors import ModelLoadError
from vllm_nb.weights.hub import ModelRepo, resolve
huggingface._TIMEOUT = float(sys.argv[2])
reports = []
progress.add_sink(reports.append)
try:
    print(resolve(ModelRepo.parse(sys.argv[1])))
except ModelLoadError as error:
    print("ModelLoadError:", error)
if reports:
    print("PROGRESS", reports[-1])
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., str]:
    """load(model, endpoint): what a process prints that resolves the model with a cache of this test's own."""

    def load(model: str, endpoint: str, timeout: float = 10) -> str:
        environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT, model, str(timeout)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=90,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return load


def test_a_folder_is_fetched_once_and_then_found_offline(load: Callable[..., str], hub: tuple[str, list[str]]) -> None:
    endpoint, requests = hub
    printed = load("org/folder", endpoint)
    folder = Path(printed.splitlines()[0])
    wanted = FILES["org/folder"].keys() - {"README.md", "consolidated.safetensors", "onnx/model.onnx"}
    assert {path.name for path in folder.iterdir()} == wanted
    total = sum(len(FILES["org/folder"][name]) for name in wanted)
    assert f"phase='Downloading org/folder', done={total}.0" in printed
    assert f"total={total}, unit='B', finished=True" in printed
    gets = [request for request in requests if "GET /org" in request]
    assert "model-2-of-2.safetensors" in gets[-1], "the weights come last: once they are there, all is"
    requests.clear()
    assert load("org/folder", endpoint).strip() == str(folder)
    assert requests == []
    (folder / "model-2-of-2.safetensors").unlink()  # as an interrupted download leaves it
    assert load("org/folder", endpoint).splitlines()[0] == str(folder)
    assert any("model-2-of-2" in request for request in requests)


def test_what_has_arrived_before_the_first_look_counts(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(bytes(3))
    before = size_of(tmp_path)
    (tmp_path / "new").write_bytes(bytes(10))
    seen: list[progress.Report] = []
    remove = progress.add_sink(seen.append)
    report_growth(tmp_path, "Downloading", 10, lambda timeout: True, before)
    remove()
    assert [(report.done, report.finished) for report in seen] == [(0, False), (10, False), (10, True)]


def test_gguf_files(load: Callable[..., str], hub: tuple[str, list[str]]) -> None:
    endpoint, requests = hub
    path = Path(load("org/gguf:x-Q4_0.gguf", endpoint).splitlines()[0])
    assert (path.name, path.read_bytes()) == ("x-Q4_0.gguf", GGUF)
    assert [entry.name for entry in path.parent.iterdir()] == ["x-Q4_0.gguf"]
    requests.clear()
    assert load("org/gguf:x-Q4_0.gguf", endpoint).strip() == str(path)
    assert requests == []
    first = Path(load("org/gguf:y-00001-of-00002.gguf", endpoint).splitlines()[0])
    assert first.name == "y-00001-of-00002.gguf"
    assert first.with_name("y-00002-of-00002.gguf").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("org/gguf", "the repository has GGUF files; name one: x-Q4_0.gguf, y-00001-of-00002.gguf"),
        ("org/gguf:x-Q4_1.gguf", "the repository has no file x-Q4_1.gguf; did you mean x-Q4_0.gguf?"),
        ("org/gguf:other.gguf", "has no file other.gguf; there are: x-Q4_0.gguf, y-00001-of-00002.gguf"),
        ("org/pickles", "neither safetensors weights with a config.json, nor GGUF files"),
        ("org/nothing", "there is no such repository, or it is private: `hf auth login`"),
        ("org/gated", "its makers ask for an agreement: accept it on the model's page"),
        ("a--b/c", "HFValidationError: "),
    ],
)
def test_what_the_hub_does_not_have(
    model: str, message: str, load: Callable[..., str], hub: tuple[str, list[str]]
) -> None:
    printed = load(model, hub[0])
    assert printed.startswith(f"ModelLoadError: The model {model!r} could not be loaded. Tried:")
    assert message in printed
    assert "Without a hub, any of these works:" in printed


def test_no_hub_within_reach_is_said_soon(load: Callable[..., str]) -> None:
    """One address that refuses, and one that takes the connection and never answers."""
    printed = load("org/folder", "http://127.0.0.1:9")
    assert "org/folder from http://127.0.0.1:9: ConnectError" in printed
    assert huggingface._TIMEOUT <= 10
    with socket.create_server(("127.0.0.1", 0)) as silent:
        printed = load("org/folder", f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=1)
        assert "ReadTimeout" in printed
