"""Notebooks as readers meet them: saved and opened again without an engine, in Notebook 7, and as a page."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Browser, Page, expect

from vllm_nb.client.runtime_dir import ENVIRONMENT_NAME

CELLS = [
    "%load_ext vllm_nb\n%vllm start smollm2 --max-model-len 4096",
    "%%vllm --temperature 0 --max-tokens 40 -o answer\nWrite a Markdown list of two rivers.",
    "%%vllm -n 2 --seed 1 --max-tokens 8\nName an animal.",
    "%vllm ps",
    "%%vllm --temprature 1\nHello",
    "answer.usage.completion_tokens",
    "import vllm_nb\nvllm_nb.panel('throughput')",
]


@pytest.fixture(scope="module")
def executed(lab, runtime: Path) -> Path:
    """The notebook after all its cells have run, as nbconvert leaves it; the engine knows nothing of it any more."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    path = lab.folder / "executed.ipynb"
    nbformat.write(notebook, path)
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--allow-errors", "--inplace", path]
    environment = os.environ | {ENVIRONMENT_NAME: str(runtime)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


def shows_all(page: Page, output: str) -> None:
    """What each cell shows, whoever draws the page. output: selector of a cell's output area."""
    outputs = page.locator(output)
    expect(outputs.nth(0)).to_contain_text("already running, reused in")
    expect(outputs.nth(1).locator("li").first).to_be_visible()  # Markdown, drawn
    expect(outputs.nth(1)).to_contain_text("tok/s")
    expect(outputs.nth(2).locator("hr")).to_have_count(1)
    expect(outputs.nth(3).locator("table")).to_contain_text("SmolLM2-135M-Instruct")
    expect(outputs.nth(4)).to_contain_text("did you mean '--temperature'?")
    expect(outputs.nth(4)).not_to_contain_text("Traceback")
    expect(outputs.nth(6).locator("figure")).to_contain_text("Tokens a second")  # without SVG where it is not trusted


def test_saved_and_opened_again_in_jupyterlab(lab, executed: Path, page: Page, tmp_path: Path) -> None:
    page.goto(f"{lab.url}lab/workspaces/again/tree/{executed.name}?token={lab.token}")
    expect(page.locator(".jp-Notebook .jp-OutputArea").first).to_be_visible()
    shows_all(page, ".jp-Notebook .jp-CodeCell .jp-OutputArea")
    page.screenshot(path=tmp_path / "lab.png", full_page=True)


def test_in_notebook_7(lab, executed: Path, browser: Browser, tmp_path: Path) -> None:
    """In a tab of its own: a script of Notebook 7 throws when it is served beside JupyterLab."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{lab.url}notebooks/{executed.name}?token={lab.token}")
        expect(page.locator(".jp-Notebook .jp-OutputArea").first).to_be_visible()
        shows_all(page, ".jp-Notebook .jp-CodeCell .jp-OutputArea")
        page.screenshot(path=tmp_path / "notebook.png", full_page=True)


def test_the_chat_in_notebook_7(lab, browser: Browser) -> None:
    """What is clicked is in Python, what Python does is on the page, also where Jupyter is Notebook 7."""
    cells = ["import vllm_nb\ntalk = vllm_nb.chat(temperature=0, max_tokens=6)\ntalk", "talk.conversation.last.text"]
    with browser.new_context() as context:
        notebook = lab.open(context.new_page(), cells, classic=True)
        chat = notebook.run(0).locator(".vn-chat")
        chat.get_by_label("Message the model").fill("Name the capital of France.")
        chat.get_by_label("Message the model").press("Control+Enter")
        expect(chat.locator(".vn-facts").last).to_contain_text("tok/s")
        answer = chat.locator(".vn-text").last.inner_text()
        assert "Paris" in answer
        expect(notebook.run(1)).to_contain_text(answer)


def test_as_a_page_of_nbconvert(lab, executed: Path, page: Page, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", tmp_path, executed]
    subprocess.run(command, check=True, capture_output=True)
    page.route("http*://**", lambda route: route.abort())  # what the page loads from elsewhere must not matter
    page.goto(f"file://{tmp_path}/executed.html")
    shows_all(page, ".jp-CodeCell .jp-OutputArea.jp-Cell-outputArea")
    expect(page.locator("figure svg")).to_be_visible()
    page.screenshot(path=tmp_path / "nbconvert.png", full_page=True)
