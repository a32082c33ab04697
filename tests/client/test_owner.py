"""An engine that ends with the process that started it."""

import os
import signal
import subprocess
import sys
import time

import psutil

from vllm_nb.client.outcomes import Reused
from vllm_nb.client.process import find, list_engines, start, stop

SMALL = {"num_kv_blocks": 512, "max_num_seqs": 4, "threads": 1}


def owner(model) -> subprocess.Popen[str]:
    """A process that has started an engine of its own and waits."""
    script = (
        f"import vllm_nb; print(vllm_nb.start({str(model)!r}, with_kernel=True, **{SMALL!r}).ok, flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    return process


def eventually(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_ends_with_its_owner_however_that_ends(runtime, tiny_model_path):
    with owner(tiny_model_path) as process:
        info = find()
        assert info.health["owner_pid"] == process.pid
        assert psutil.Process(info.pid).ppid() == process.pid
        os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(info.pid))
    assert f"the process {process.pid}, with which this one was to end, has ended" in info.log_path.read_text()
    assert list_engines() == []


def test_it_stays_when_somebody_else_has_started_it_too(runtime, tiny_model_path):
    with owner(tiny_model_path) as process:
        outcome = start(tiny_model_path, **SMALL)
        assert isinstance(outcome, Reused)
        process.communicate("\n")
    assert find().health["owner_pid"] is None
    time.sleep(0.6)  # two looks of the engine after its owner
    with outcome.client as client:
        assert client.chat("Hello", max_tokens=1).usage.completion_tokens == 1


def test_who_watches_does_not_hold_up_the_end(runtime, tiny_model_path):
    """A panel's stream of events is no answer that would have to be finished."""
    outcome = start(tiny_model_path, **SMALL)
    batches = outcome.client.events()
    next(batches)
    (stopped,) = stop()
    assert stopped.how == "shutdown"  # when it was asked to, not killed later
    batches.close()
