"""Real engine processes in a runtime folder of the test's own; none may be left over."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_nb.client.process import list_engines, start, stop
from vllm_nb.client.runtime_dir import ENVIRONMENT_NAME

SMALL = {"num_kv_blocks": 512, "max_num_seqs": 4, "threads": 1}


@pytest.fixture
def runtime(tmp_path, monkeypatch) -> Iterator[Path]:
    """An empty runtime folder, whose engines end with the test."""
    folder = tmp_path / "runtime"
    monkeypatch.setenv(ENVIRONMENT_NAME, str(folder))
    yield folder
    monkeypatch.setenv(ENVIRONMENT_NAME, str(folder))
    for info in list_engines():
        os.kill(info.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def engine(tmp_path_factory, tiny_model_path) -> Iterator:
    """A Started engine on the tiny model that the tests of a module share."""
    folder = tmp_path_factory.mktemp("shared") / "runtime"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_NAME, str(folder))
        outcome = start(tiny_model_path, **SMALL)
        assert outcome.ok, outcome
        with outcome.client:
            yield outcome
        patch.setenv(ENVIRONMENT_NAME, str(folder))
        stop(all=True)


@pytest.fixture(autouse=True)
def _runtime_of_the_engine(request, monkeypatch):
    """A test that uses the shared engine looks into its folder."""
    if "engine" in request.fixturenames:
        outcome = request.getfixturevalue("engine")
        monkeypatch.setenv(ENVIRONMENT_NAME, str(outcome.info.log_path.parent))
