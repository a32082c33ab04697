"""A real Chromium, a real engine process and a real JupyterLab, each started once for this folder.

`page` is a fresh tab that fails its test on errors of its scripts; `engine` is SmolLM2 in a process of its own;
`lab.open(page, cells)` is a notebook in JupyterLab, whose kernel finds that engine.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import nbformat
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from vllm_nb.client import process
from vllm_nb.client.outcomes import Reused, Started
from vllm_nb.client.runtime_dir import ENVIRONMENT_NAME

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SECONDS = 60  # within which what is awaited must come; a busy machine is slow
WIDE = {"width": 1280, "height": 800}


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab of a fresh profile, 1280 pixels wide. What its scripts throw fails the test."""
    errors: list[str] = []
    with browser.new_context(viewport=WIDE, accept_downloads=True) as context:
        context.set_default_timeout(SECONDS * 1000)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(f"{error}\n{error.stack}"))
        yield page
    assert errors == []


@pytest.fixture(scope="package")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the engines of these tests are known, and what they end with."""
    folder = tmp_path_factory.mktemp("engines") / "runtime"
    yield folder
    with _known_in(folder):
        process.stop(all=True)


@contextmanager
def _known_in(runtime: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_NAME, str(runtime))
        yield


@pytest.fixture(scope="package")
def engine(runtime: Path) -> Iterator[Started | Reused]:
    """SmolLM2, started as `%vllm start` would. `engine.client` has its url and token."""
    with _known_in(runtime):
        outcome = process.start("smollm2", max_model_len=4096)
    assert isinstance(outcome, Started | Reused), outcome
    with outcome.client:
        yield outcome


@dataclass
class Lab:
    """A JupyterLab server. `folder` is what it shows."""

    url: str
    token: str
    folder: Path
    config: Path

    @contextmanager
    def setting(self, extension: str, plugin: str, values: dict[str, object]) -> Iterator[None]:
        """Settings for pages that are opened meanwhile, as JupyterLab's settings editor makes them."""
        file = _settings_file(self.config, extension, plugin)
        file.write_text(json.dumps(values))
        yield
        file.unlink()

    def open(self, page: Page, cells: list[str], *, classic: bool = False) -> "Notebook":
        """A new notebook with these code cells, alone in the window, its kernel ready. classic: in Notebook 7."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
        name = f"{secrets.token_hex(4)}.ipynb"
        nbformat.write(notebook, self.folder / name)
        if classic:
            page.goto(f"{self.url}notebooks/{name}?token={self.token}")
            expect(page.locator(".jp-NotebookKernelStatus")).to_have_class(re.compile("-info|-fade"))
            return Notebook(page)
        page.goto(f"{self.url}lab/workspaces/{name.removesuffix('.ipynb')}/tree/{name}?token={self.token}")
        expect(page.locator("#jp-main-statusbar")).to_contain_text("(ipykernel) | Idle")
        return Notebook(page)

    def restart_kernel(self, page: Page) -> None:
        """Of the notebook in that page, without its knowledge: as another page or a script would."""
        headers = {"Authorization": f"token {self.token}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=SECONDS, trust_env=False) as server:
            sessions = server.get("api/sessions").json()
            (kernel,) = [each["kernel"]["id"] for each in sessions if page.url.endswith(f"/{each['path']}")]
            assert server.post(f"api/kernels/{kernel}/restart").status_code == 200


@dataclass
class Notebook:
    """A notebook open in JupyterLab."""

    page: Page

    def cell(self, number: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)

    def output(self, number: int) -> Locator:
        """The output area of a cell."""
        return self.cell(number).locator(".jp-OutputArea")

    def start(self, number: int) -> None:
        """Begin to execute a cell. By the button: a key may come before the page has put the focus."""
        self.cell(number).locator(".jp-InputPrompt").click()
        self.page.locator(_RUN_BUTTON).click()

    def run(self, number: int) -> Locator:
        """Execute a cell and wait for its end; its output area."""
        prompt = self.cell(number).locator(".jp-InputPrompt")
        before = prompt.text_content()
        self.start(number)
        expect(prompt).not_to_have_text(before or "")
        expect(prompt).to_have_text(_EXECUTED)
        return self.output(number)

    def restart_kernel(self) -> None:
        """As a reader does."""
        self.page.locator("jp-button[data-command='notebook:restart-kernel']").click()
        self.page.get_by_role("dialog").get_by_role("button", name="Confirm Kernel Restart").click()


_RUN_BUTTON = "jp-button[data-command='notebook:run-cell-and-select-next']"
_EXECUTED = re.compile(r"\[\d+\]:")


@pytest.fixture(scope="package")
def lab(runtime: Path, engine: Started | Reused, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab on a free port, with settings, kernels and files of its own."""
    home = tmp_path_factory.mktemp("jupyter")
    folders = {name: home / name.lower() for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    environment = os.environ | {ENVIRONMENT_NAME: str(runtime), "IPYTHONDIR": str(home / "ipython")}
    environment |= {name: str(folder) for name, folder in folders.items()}
    files, token = home / "notebooks", secrets.token_urlsafe(16)
    files.mkdir()
    _ask_nothing(folders["JUPYTER_CONFIG_DIR"])
    options = {
        "ServerApp.port": 0,
        "ServerApp.root_dir": files,
        "IdentityProvider.token": token,
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, cwd=files, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield Lab(
            _address(server, folders["JUPYTER_RUNTIME_DIR"], home / "log"), token, files, folders["JUPYTER_CONFIG_DIR"]
        )
    finally:
        server.terminate()
        server.wait(SECONDS)


def _ask_nothing(config: Path) -> None:
    """No dialogs: neither news, nor which kernel to start. And all cells stay in the page, visible or not."""
    for extension, plugin, settings in (
        ("apputils", "notification", {"fetchNews": "false", "checkForUpdates": False}),
        ("notebook", "tracker", {"autoStartDefaultKernel": True, "windowingMode": "none"}),
    ):
        _settings_file(config, extension, plugin).write_text(json.dumps(settings))


def _settings_file(config: Path, extension: str, plugin: str) -> Path:
    folder = config / f"lab/user-settings/@jupyterlab/{extension}-extension"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{plugin}.jupyterlab-settings"


def _address(server: "subprocess.Popen[bytes]", runtime: Path, log: Path) -> str:
    """What the server says of itself once it listens."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        for file in runtime.glob(f"jpserver-{server.pid}.json"):
            return str(json.loads(file.read_text())["url"])
        time.sleep(0.05)
    pytest.fail(f"JupyterLab does not start: {log.read_text()}")
