"""Starts that fail, are given up, or take too long: everyone is told, in the engine's own words."""

import os
import signal
import threading

import psutil
import pytest

from tests.client.test_lifecycle import SMALL, SOON, begin, running
from vllm_nb.client import launch
from vllm_nb.client.outcomes import Failed, TimedOut
from vllm_nb.client.process import list_engines, start, stop
from vllm_nb.client.runtime_dir import start_lock
from vllm_nb.errors import ModelLoadError


def test_all_who_wait_are_told_of_a_failure(runtime, tmp_path):
    outcomes = []
    waiting = [threading.Thread(target=lambda: outcomes.append(start(tmp_path / "none.gguf"))) for _ in range(3)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join(SOON)
    assert len(outcomes) == 3
    assert all(isinstance(outcome, Failed) and "none.gguf" in outcome.message for outcome in outcomes)


def test_a_missing_model_fails_with_the_engines_own_words(runtime, tmp_path):
    outcome = start(tmp_path / "none.gguf")
    assert isinstance(outcome, Failed)
    assert str(tmp_path / "none.gguf") in outcome.message
    assert outcome.exit_code == 1
    assert outcome.message in outcome.log_tail
    assert "Traceback" not in outcome.log_tail
    assert outcome.log_path.parent == runtime
    with pytest.raises(ModelLoadError, match=r"none\.gguf"):
        outcome.client  # noqa: B018  # as in a script that does not look at the outcome
    assert list_engines() == []
    assert not list(runtime.glob("*.json"))


def test_a_truncated_model_fails_with_the_engines_own_words(runtime, tmp_path, smollm2_path):
    cut = tmp_path / "cut.gguf"
    with smollm2_path.open("rb") as whole:
        cut.write_bytes(whole.read(1_000_000))
    outcome = start(cut)
    assert isinstance(outcome, Failed)
    assert outcome.exit_code == 1
    assert "cut.gguf" in outcome.message


def test_an_engine_killed_while_it_loads(runtime, tiny_model_path):
    def kill(report):
        for pid in running():
            os.kill(pid, signal.SIGKILL)

    outcome = start(tiny_model_path, on_progress=kill, **SMALL)
    assert isinstance(outcome, Failed)
    assert outcome.exit_code == -signal.SIGKILL
    assert "was killed by signal 9" in outcome.message


def test_a_process_that_does_not_open_its_port_is_killed_and_that_is_said(runtime, tiny_model_path, monkeypatch):
    monkeypatch.setattr(launch, "BIND_TIMEOUT", 0)  # no interpreter is that quick
    outcome = start(tiny_model_path, **SMALL)
    assert isinstance(outcome, Failed)
    assert outcome.message == (
        "the engine process did not open its port within 0 s and was killed; start it again when this machine and its "
        "disk are less busy"
    )
    assert outcome.exit_code == -signal.SIGKILL
    assert not list(runtime.glob("*.json"))


def test_exit_codes_are_of_an_engine_not_of_a_pid_and_old_ones_are_forgotten(runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_ENDED_KEPT", 1)
    ids = [start(tmp_path / "none.gguf").log_path.stem for _ in range(3)]
    codes = [launch.exit_code(each) for each in ids]
    assert codes == [None, 1, 1]  # one is kept when the next is started
    assert launch.exit_code("an engine that somebody else has started") is None


def test_a_start_that_takes_too_long_leaves_the_engine_loading(runtime, tiny_model_path):
    outcome = begin(tiny_model_path)
    assert "engine 'tiny-llama' is not ready after 0 s and goes on loading" in outcome.message
    assert outcome.info.status in ("loading", "silent")
    with start_lock(runtime):  # held only until the process has bound its port
        assert running() == [outcome.info.pid]


def test_an_interrupt_stops_the_waiting_only(runtime, tiny_model_path):
    def interrupt(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"'tiny-llama' \(pid \d+\) goes on loading.*%vllm stop tiny-llama"):
        start(tiny_model_path, on_progress=interrupt, **SMALL)
    (pid,) = running()
    assert begin(tiny_model_path).info.pid == pid


def test_stopping_an_engine_that_still_loads(runtime, tiny_model_path):
    pid = begin(tiny_model_path).info.pid
    assert [(stopped.pid, stopped.how) for stopped in stop()] == [(pid, "shutdown")]
    assert not psutil.pid_exists(pid)


def test_an_engine_that_hangs_is_shown_and_killed(runtime, tiny_model_path, monkeypatch):
    for module, name in [
        ("registry", "PROBE_TIMEOUT"),
        ("process", "PROBE_TIMEOUT"),
        ("process", "_GRACE"),
        ("http", "ABORT"),
    ]:
        monkeypatch.setattr(f"vllm_nb.client.{module}.{name}", 0.4)
    first = begin(tiny_model_path)
    os.kill(first.info.pid, signal.SIGSTOP)
    (info,) = list_engines()
    assert (info.status, info.pid) == ("silent", first.info.pid)
    reports = []
    outcome = start(tiny_model_path, timeout=1.0, on_progress=reports.append, **SMALL)
    assert isinstance(outcome, TimedOut)
    assert [report.phase for report in reports] == ["Waiting for engine 'tiny-llama' to answer"]
    assert [stopped.how for stopped in stop()] == ["killed"]
    assert not psutil.pid_exists(first.info.pid)
