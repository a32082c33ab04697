"""Shells and engine processes of the notebook tests: all real, in a runtime folder of their own."""

from collections.abc import Callable, Iterator

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

from vllm_nb.client import process
from vllm_nb.client.http import EngineClient
from vllm_nb.client.runtime_dir import ENVIRONMENT_NAME

Run = Callable[[str], ExecutionResult]


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """An InteractiveShell with the extension loaded, its display data caught in `shell.display_pub.outputs`."""
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.display_pub = CapturingDisplayPublisher()
    shell.run_line_magic("load_ext", "vllm_nb")
    yield shell
    shell.run_line_magic("unload_ext", "vllm_nb")
    InteractiveShell.clear_instance()


@pytest.fixture
def run(shell: InteractiveShell) -> Run:
    """Runs a whole cell; only its own outputs are in `shell.display_pub.outputs` afterwards."""

    def run_cell(cell: str) -> ExecutionResult:
        shell.display_pub.outputs.clear()
        return shell.run_cell(cell, store_history=True)

    return run_cell


@pytest.fixture(scope="session")
def runtime_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the engines of these tests are known; all of them end with the session."""
    folder = str(tmp_path_factory.mktemp("runtime"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_NAME, folder)
        yield folder
        process.stop(all=True)


@pytest.fixture(scope="session")
def engine(runtime_dir: str) -> Iterator[EngineClient]:
    """The default model, as `%vllm start` finds it when a colleague has started it before."""
    outcome = process.start()
    assert outcome.ok, outcome
    with outcome.client as client:
        yield client
