"""Interrupts and deaths at awkward moments, with a small engine of the test's own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from vllm_nb.client import process
from vllm_nb.client.completion import Completion
from vllm_nb.client.http import EngineClient
from vllm_nb.errors import VllmNbError
from vllm_nb.notebook.answer import Answer
from vllm_nb.outputs import StreamItem

LONG = {"max_tokens": 20_000, "ignore_eos": True}
STORY = "%%vllm --ignore-eos --max-tokens 20000 -o kept\nTell me a story."


@pytest.fixture
def tiny(runtime_dir: str, run, tiny_model_path):
    """An engine with two rows, the current one."""
    assert run(f"%vllm start {tiny_model_path} --name tiny --max-num-seqs 2 --num-kv-blocks 4096 --threads 1").success
    client = process.attach("tiny")
    yield client
    if any(info.name == "tiny" for info in process.list_engines()):
        process.stop("tiny")


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.01)


def when(condition: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
    def wait() -> None:
        wait_for(condition)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def interrupt_when(condition: Callable[[], object]) -> None:
    when(condition, lambda: os.kill(os.getpid(), signal.SIGINT))


def idle(client: EngineClient) -> bool:
    state = client.state()
    return state["running"] == state["waiting"] == state["kv_blocks"]["used"] == 0


def test_interrupted_while_it_decodes_its_blocks_are_free_when_the_cell_ends(shell, run, tiny) -> None:
    interrupt_when(lambda: tiny.state()["kv_blocks"]["used"] > 4)
    assert isinstance(run(STORY).error_in_exec, KeyboardInterrupt)
    assert idle(tiny)  # no waiting: the last words of the answer came after the blocks had been given back
    kept = shell.user_ns["kept"]
    assert kept is shell.user_ns["_"]
    assert kept.finish_reason == "abort"
    assert kept.text
    assert tiny.state()["integrity"] == "ok"


def test_interrupted_in_its_prefill(shell, run, tiny) -> None:
    interrupt_when(lambda: tiny.state()["running"] == 1)
    assert isinstance(run("%%vllm --ignore-eos\n{{ 'many words ' * 4000 }}").error_in_exec, KeyboardInterrupt)
    wait_for(lambda: idle(tiny))
    assert shell.user_ns["_"].finish_reason == "abort"


def test_interrupted_while_it_is_queued(shell, run, tiny) -> None:
    with tiny.stream("Hello", n=2, **LONG) as busy:
        next(busy)
        interrupt_when(lambda: tiny.state()["waiting"] == 1)
        assert isinstance(run(STORY).error_in_exec, KeyboardInterrupt)
        state = tiny.state()
        assert (state["running"], state["waiting"]) == (2, 0)  # the others go on
        assert shell.user_ns["_"].token_ids == []
        assert "interrupted" in shell.display_pub.outputs[-1]["data"]["text/markdown"]
    wait_for(lambda: idle(tiny))


def test_an_engine_that_is_killed_leaves_the_text_and_says_how_to_go_on(shell, run, tiny, capsys) -> None:
    pid = tiny.health()["pid"]

    def kill() -> None:
        wait_for(lambda: tiny.state()["kv_blocks"]["used"] > 4)
        os.kill(pid, signal.SIGKILL)

    threading.Thread(target=kill).start()
    error = run(STORY).error_in_exec
    assert type(error).__name__ == "EngineFailure"
    assert "is not running any more" in str(error)
    assert "%vllm start" in str(error)
    assert shell.user_ns["kept"].text
    assert shell.user_ns["_"].finish_reason == "abort"
    assert "Traceback" not in capsys.readouterr().out


def test_an_engine_that_is_stopped_elsewhere_ends_the_cell_with_an_error(shell, run, tiny, capsys) -> None:
    """Not as an answer that somebody interrupted: "Run All" would go on with half of it."""
    thread = when(lambda: tiny.state()["kv_blocks"]["used"] > 4, lambda: process.stop("tiny"))
    error = run(STORY).error_in_exec
    thread.join()
    assert type(error).__name__ == "EngineFailure"
    assert "is not running any more (it was stopped in mid-answer): start it again with `%vllm start`" in str(error)
    kept = shell.user_ns["kept"]
    assert kept is shell.user_ns["_"]
    assert kept.text
    assert shell.display_pub.outputs[-1]["data"]["text/plain"] == kept.text
    assert "Traceback" not in capsys.readouterr().out


def test_an_engine_that_is_stopped_before_the_first_token_leaves_nothing(run, tiny) -> None:
    with tiny.stream("Hello", n=2, **LONG) as busy:
        next(busy)
        thread = when(lambda: tiny.state()["waiting"] == 1, lambda: process.stop("tiny"))
        error = run(STORY).error_in_exec
    thread.join()
    assert type(error).__name__ == "EngineFailure"
    assert "it was stopped in mid-answer" in str(error)


def test_a_request_that_is_aborted_by_its_id_ends_as_an_answer(shell, run, tiny) -> None:
    """Somebody did that on purpose: the engine lives on, and what there is counts."""

    def abort() -> None:
        (number,) = tiny.view().running
        tiny.abort(tiny.view().sequences[number].request_id)

    thread = when(lambda: tiny.state()["kv_blocks"]["used"] > 4, abort)
    result = run(STORY)
    thread.join()
    assert result.success
    assert result.result.finish_reason == "abort"
    assert result.result.text
    assert shell.user_ns["kept"] is result.result
    assert idle(tiny)


def test_another_server_that_ends_a_request_has_not_answered() -> None:
    """Nobody can abort by id there, so nobody has asked for it."""
    stream = nullcontext([])
    stream.completion = Completion("m")
    stream.completion.add(StreamItem("r", 0, "Half an", [], finish_reason="abort"))
    client = SimpleNamespace(ours=False, name="gpu", url="http://gpu:8000")
    with pytest.raises(VllmNbError, match=r"'gpu' at http://gpu:8000 ended the request before .*: run the cell again"):
        Answer(client, stream, Mock()).show()


NOTEBOOK = """
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.display_pub = CapturingDisplayPublisher()
for cell in {cells!r}:
    result = shell.run_cell(cell, silent=True)
    print("Outcome:", type(result.error_in_exec).__name__, result.error_in_exec, flush=True)
    input()
"""


def notebook(*cells: str) -> "subprocess.Popen[str]":
    """Another notebook, in a process of its own; a line on its stdin makes it go on after each cell."""
    command = [sys.executable, "-c", NOTEBOOK.format(cells=["%load_ext vllm_nb", *cells])]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def outcome(other: "subprocess.Popen[str]") -> str:
    """Of its next cell."""
    for line in other.stdout:
        if line.startswith("Outcome: "):
            return line.removeprefix("Outcome: ")
    raise AssertionError("it ended")


def go_on(other: "subprocess.Popen[str]") -> None:
    other.stdin.write("\n")
    other.stdin.flush()


def test_a_kernel_that_is_killed_takes_its_request_along_and_leaves_the_engine(run, tiny) -> None:
    with notebook("%vllm use tiny", STORY) as other:
        for _ in range(2):
            assert outcome(other).startswith("NoneType")
            go_on(other)
        wait_for(lambda: tiny.state()["running"] == 1)
        other.kill()
    wait_for(lambda: idle(tiny))
    assert run("%%vllm --max-tokens 2\nHello").success


def test_two_notebooks_and_a_script_share_an_engine_and_are_told_of_its_end(run, tiny, tiny_model_path) -> None:
    start = f"%vllm start {tiny_model_path} --name tiny --max-num-seqs 2 --num-kv-blocks 4096 --threads 1"
    cell = "%%vllm --max-tokens 2\nHello"
    script = "import vllm_nb; print(vllm_nb.connect('tiny').chat('Hello', max_tokens=2).model)"
    with notebook(start, cell, cell, start, cell) as other:
        for number in range(3):
            assert outcome(other).startswith("NoneType")
            if number < 2:
                go_on(other)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout == "tiny-llama\n"
        assert len([info for info in process.list_engines() if info.name == "tiny"]) == 1
        run("%vllm stop tiny")
        go_on(other)
        told = outcome(other)
        assert told.startswith("EngineFailure engine 'tiny' at http://127.0.0.1")
        assert "is not running any more" in told
        assert "`%vllm start`" in told
        for _ in range(2):  # and back: start, and the cell again
            go_on(other)
            assert outcome(other).startswith("NoneType")
        other.kill()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0
