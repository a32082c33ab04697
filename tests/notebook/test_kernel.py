"""The magics in a real Jupyter kernel: interrupted, restarted, and run by nbclient."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel

from vllm_nb.client.http import EngineClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@dataclass
class Kernel:
    manager: KernelManager
    client: BlockingKernelClient
    messages: list[dict[str, Any]] = field(default_factory=list)

    def run(self, cell: str, hook: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
        """Execute a cell and return the content of its reply. Each message is passed to `hook` and kept."""
        self.messages.clear()

        def receive(message: dict[str, Any]) -> None:
            self.messages.append(message)
            hook(message)

        return self.client.execute_interactive(cell, output_hook=receive, timeout=120)["content"]

    def shown(self, mime: str = "text/plain") -> list[str]:
        """What was displayed and updated, in order."""
        return [m["content"]["data"][mime] for m in self.messages if mime in m["content"].get("data", {})]


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    manager, client = start_new_kernel(kernel_name="python3", extra_arguments=["--log-level=ERROR"])
    kernel = Kernel(manager, client)
    assert kernel.run("%load_ext vllm_nb")["status"] == "ok"
    assert kernel.shown() == []
    yield kernel
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_interrupt_keeps_the_text_and_restart_keeps_the_engine(kernel: Kernel, engine: EngineClient) -> None:
    kernel.run("%vllm start")
    interrupted = False

    def interrupt_once_text_is_shown(message: dict[str, Any]) -> None:
        nonlocal interrupted
        if not interrupted and "tok/s" in message["content"].get("data", {}).get("text/html", ""):
            interrupted = True
            kernel.manager.interrupt_kernel()

    reply = kernel.run("%%vllm -o kept --ignore-eos\nTell me a very long story.", interrupt_once_text_is_shown)
    assert reply["status"] == "error"  # so that "Run All" stops here
    assert len(reply["traceback"]) == 1
    assert "the text so far is in _ and kept" in reply["traceback"][0]
    last = kernel.shown()[-1]
    assert "interrupted" in kernel.shown("text/markdown")[-1]
    kernel.run("assert kept is _ and kept.finish_reason == 'abort'; print(kept.text, end='')")
    assert "".join(m["content"]["text"] for m in kernel.messages if m["msg_type"] == "stream") == last

    pid = engine.health()["pid"]
    kernel.manager.restart_kernel(now=True)
    kernel.client.wait_for_ready(timeout=60)
    assert kernel.run("%load_ext vllm_nb\n%vllm start")["status"] == "ok"
    assert "already running, reused in 0." in kernel.shown()[-1]
    assert engine.health()["pid"] == pid
    assert engine.state()["running"] == 0


def test_a_streamed_answer_is_one_output(kernel: Kernel, engine: EngineClient) -> None:
    assert kernel.run("%%vllm --temperature 0 --max-tokens 4\nWhat is the capital of France?")["status"] == "ok"
    kinds = {message["msg_type"] for message in kernel.messages}
    assert kinds == {"status", "execute_input", "display_data", "update_display_data"}
    kernel.run("_")
    assert "execute_result" in {message["msg_type"] for message in kernel.messages}


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebook(path: Path, engine: EngineClient, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "commit notebooks without outputs"

    # In a process of its own: nbclient wants an event loop that no other test has used.
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", tmp_path, path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for cell in nbformat.read(tmp_path / path.name, as_version=4).cells:
        if cell.source.startswith("%%vllm"):
            assert [output.output_type for output in cell.outputs] == ["display_data"]
            assert "tok/s" in cell.outputs[0].data["text/markdown"]
