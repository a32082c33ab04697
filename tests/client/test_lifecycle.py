"""Engine processes end to end: started once, reused, found dead however they died, stopped for certain."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time

import psutil
import pytest

import vllm_nb
from vllm_nb.client.http import EngineClient
from vllm_nb.client.launch import EngineSpec
from vllm_nb.client.outcomes import Reused, Started, TimedOut
from vllm_nb.client.process import attach, find, list_engines, start, stop
from vllm_nb.errors import EngineDeadError

SMALL = {"num_kv_blocks": 512, "max_num_seqs": 4, "threads": 1}
SOON = 30.0


def begin(model, **options) -> TimedOut:
    """Start and do not wait: the process is there, its model is not."""
    outcome = start(model, timeout=0, **SMALL | options)
    assert isinstance(outcome, TimedOut), outcome
    return outcome


def eventually(condition) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connection_file(runtime, info):
    return runtime / f"{info.id}.json"


def running() -> list[int]:
    return [info.pid for info in list_engines()]


# A whole life


def test_started_reused_and_stopped(runtime, tiny_model_path):
    reports = []
    first = start(tiny_model_path, on_progress=reports.append, **SMALL)
    assert isinstance(first, Started)
    assert first.info.status == "ready"
    assert reports[0].phase == "Starting the engine process"
    assert reports[-1].finished
    process = psutil.Process(first.info.pid)
    assert os.getsid(process.pid) == process.pid  # signals to this process's group do not reach it
    assert os.readlink(f"/proc/{process.pid}/fd/0") == os.devnull
    assert [c.laddr.ip for c in process.net_connections("tcp") if c.status == "LISTEN"] == ["127.0.0.1"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in runtime.iterdir()} == {0o600}

    second = start(tiny_model_path, **SMALL)
    assert isinstance(second, Reused)
    assert second.info.pid == first.info.pid
    with second.client as client:
        assert client.chat("Hello", max_tokens=3).usage.completion_tokens <= 3

    (stopped,) = stop()
    assert (stopped.name, stopped.pid, stopped.how) == ("tiny-llama", first.info.pid, "shutdown")
    assert not psutil.pid_exists(first.info.pid)
    assert list_engines() == []
    assert sorted(path.suffix for path in runtime.iterdir()) == [".lock", ".log"]
    with pytest.raises(EngineDeadError, match=r"'tiny-llama' at http://127.* is not running any more.*%vllm start"):
        first.client.chat("Hello")


def test_another_configuration_is_another_engine(runtime, tiny_model_path):
    first = begin(tiny_model_path)
    other = begin(tiny_model_path, num_kv_blocks=256)
    assert other.info.pid != first.info.pid
    assert [info.name for info in list_engines()] == ["tiny-llama", "tiny-llama-2"]
    with pytest.raises(ValueError, match="several engines are running: name one of tiny-llama, tiny-llama-2"):
        stop()
    with pytest.raises(ValueError, match="'tiny-llama-3'; did you mean 'tiny-llama"):
        stop("tiny-llama-3")
    assert [stopped.name for stopped in stop("tiny-llama-2")] == ["tiny-llama-2"]
    assert find().pid == find(first.info.id).pid == find("tiny-llama").pid == first.info.pid
    with attach() as client:
        assert client.health()["pid"] == first.info.pid
    assert len(stop(all=True)) == 1
    with pytest.raises(ValueError, match="no engine is running"):
        find()
    assert stop(all=True) == []


def test_names(runtime, tiny_model_path):
    first = begin(tiny_model_path, name="mine")
    assert first.info.name == "mine"
    assert begin(tiny_model_path).info.pid == begin(tiny_model_path, name="mine").info.pid == first.info.pid
    with pytest.raises(ValueError, match="engine 'mine' runs already"):
        begin(tiny_model_path, name="mine", num_kv_blocks=99)
    with pytest.raises(ValueError, match="name must be up to 64"):
        begin(tiny_model_path, name="no spaces")
    assert running() == [first.info.pid]


def test_wrong_settings_are_refused_before_anything_starts(runtime, tiny_model_path):
    with pytest.raises(ValueError, match="unknown engine setting 'max_model_length'"):
        start(tiny_model_path, max_model_length=5)
    with pytest.raises(ValueError, match="block_size must be"):
        start(tiny_model_path, block_size=0)
    with pytest.raises(ValueError, match="no model is named: give smollm2"):
        start("")
    assert not list(runtime.glob("*.json"))


def test_the_key_follows_the_files(tiny_model_path, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model_path, copy)
    before = EngineSpec.of(copy, {})
    assert before.key == EngineSpec.of(f"{copy}/", {}).key == EngineSpec.of(str(copy), {"block_size": 16}).key
    assert before.key != EngineSpec.of(tiny_model_path, {}).key
    assert before.key != EngineSpec.of(copy, {"block_size": 32}).key
    os.utime(copy / "model.safetensors", ns=(1, 1))
    assert EngineSpec.of(copy, {}).key != before.key


@pytest.mark.parametrize(
    ("model", "short"),
    [("smollm2", "smollm2"), ("Qwen/Qwen3-0.6B", "Qwen3-0.6B"), ("a/B-GGUF:b.gguf", "B-GGUF"), ("./x/y.gguf", "y")],
)
def test_what_a_model_is_called(model, short):
    assert EngineSpec.of(model, {}).short_name == short


# Files that lie


@pytest.mark.parametrize("damage", ["folder deleted", "corrupt", "emptied"])
def test_a_lost_file_is_written_again_and_the_engine_found(runtime, tiny_model_path, damage):
    first = begin(tiny_model_path)
    path = connection_file(runtime, first.info)
    if damage == "folder deleted":
        shutil.rmtree(runtime)
    else:
        path.write_text("{" if damage == "corrupt" else "")
    eventually(lambda: running() == [first.info.pid])
    assert begin(tiny_model_path).info.pid == first.info.pid


def test_a_start_right_after_the_file_is_lost_makes_a_new_engine(runtime, tiny_model_path):
    first = begin(tiny_model_path)
    os.kill(first.info.pid, signal.SIGSTOP)  # it cannot write its file again
    connection_file(runtime, first.info).unlink()
    second = begin(tiny_model_path)
    assert second.info.pid != first.info.pid
    os.kill(first.info.pid, signal.SIGCONT)
    eventually(lambda: set(running()) == {first.info.pid, second.info.pid})


def test_a_killed_engine_is_forgotten_and_replaced(runtime, tiny_model_path):
    first = begin(tiny_model_path)
    os.kill(first.info.pid, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(first.info.pid))  # nothing stays of it, not even a zombie
    second = begin(tiny_model_path)
    assert running() == [second.info.pid] != [first.info.pid]
    assert not connection_file(runtime, first.info).exists()


def test_a_reused_pid_is_not_taken_for_the_engine(runtime, tiny_model_path):
    """The file of a dead engine names a pid that is another process by now."""
    first = begin(tiny_model_path)
    path = connection_file(runtime, first.info)
    record = json.loads(path.read_text())
    stop()

    def write(**changes):
        path.write_text(json.dumps(record | changes))
        path.chmod(0o600)

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        write(pid=stranger.pid)
        assert list_engines() == []
        assert not path.exists()
        # With the same create time too: then only the answer to /health tells.
        write(pid=stranger.pid, create_time=psutil.Process(stranger.pid).create_time())
        assert begin(tiny_model_path).info.pid != stranger.pid
        assert not path.exists()
        # And with another engine on the port.
        port = json.loads(connection_file(runtime, list_engines()[0]).read_text())["port"]
        write(pid=stranger.pid, create_time=psutil.Process(stranger.pid).create_time(), port=port)
        assert len(running()) == 1
        assert not path.exists()
        assert stranger.poll() is None  # it was left alone
        stranger.communicate(b"\n")


def test_a_file_of_a_start_that_died_is_cleared_away(runtime, tiny_model_path):
    first = begin(tiny_model_path)
    record = json.loads(connection_file(runtime, first.info).read_text())
    unbound = runtime / "abc.json"
    unbound.write_text(json.dumps(record | {"id": "abc", "pid": None, "port": None, "create_time": None}))
    unbound.chmod(0o600)
    assert running() == [first.info.pid]
    assert unbound.exists()  # it may belong to a start that goes on
    assert begin(tiny_model_path).info.pid == first.info.pid
    assert not unbound.exists()


def test_an_engine_whose_file_is_gone_before_it_binds_gives_up(runtime):
    command = [sys.executable, "-m", "vllm_nb.server", str(runtime / "none.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no connection file" in done.stderr
    assert "Traceback" not in done.stderr


def test_logs_of_engines_that_are_gone_do_not_pile_up(runtime, tiny_model_path):
    first = begin(tiny_model_path)
    for number in range(20):
        (runtime / f"old{number}.log").write_text("")
        os.utime(runtime / f"old{number}.log", (number, number))
    stop()
    logs = {path.name for path in runtime.glob("*.log")}
    assert len(logs) == 10
    assert {f"{first.info.id}.log", "old19.log"} <= logs


# Several at once


def test_starts_at_once_make_one_engine(runtime, tiny_model_path):
    script = f"""
import vllm_nb
print(vllm_nb.start({str(tiny_model_path)!r}, timeout=0, **{SMALL!r}).info.pid)
"""
    starts = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = {process.communicate(timeout=60)[0].strip() for process in starts}
    assert said == {str(pid) for pid in running()}
    assert len(said) == 1


def test_it_survives_the_process_that_started_it(runtime, tiny_model_path):
    script = (
        f"import vllm_nb, os; vllm_nb.start({str(tiny_model_path)!r}, timeout=0, **{SMALL!r}); os.kill(os.getpid(), 9)"
    )
    starter = subprocess.run([sys.executable, "-c", script], check=False)
    assert starter.returncode == -signal.SIGKILL
    (pid,) = running()
    assert begin(tiny_model_path).info.pid == pid


# How it ends by itself


def test_an_idle_engine_ends_and_cleans_up(runtime, tiny_model_path):
    outcome = start(tiny_model_path, idle_timeout=0.5, **SMALL)
    assert outcome.ok
    eventually(lambda: not psutil.pid_exists(outcome.info.pid))
    assert not list(runtime.glob("*.json"))
    assert "no request for 0.5 seconds: stopping" in outcome.info.log_path.read_text()


def test_sigterm_lets_running_answers_end(runtime, tiny_model_path):
    outcome = start(tiny_model_path, **SMALL)
    with outcome.client as client, client.stream("Hello", max_tokens=60, ignore_eos=True) as stream:
        next(stream)
        os.kill(outcome.info.pid, signal.SIGTERM)
        for _ in stream:
            continue
    assert stream.completion.finish_reason == "length"
    eventually(lambda: not psutil.pid_exists(outcome.info.pid))
    assert not list(runtime.glob("*.json"))


# On an engine that is ready


def test_the_default_model_answers(runtime):
    with start(max_model_len=512).client as client:
        question = "What is the capital of France? Answer with one word."
        completion = client.chat(question, temperature=0, max_tokens=8)
    assert "Paris" in completion.text
    assert completion.model == "SmolLM2-135M-Instruct"
    assert [info.name for info in list_engines()] == ["smollm2"]


def test_reuse_is_quick_and_of_several_idle_timeouts_the_longest_counts(engine, tiny_model_path):
    for asked, counts in [(500, 1800), (2000, 2000), (None, None), (5, None)]:
        outcome = start(tiny_model_path, idle_timeout=asked, **SMALL)
        assert (type(outcome), outcome.info.pid) == (Reused, engine.info.pid)
        assert outcome.seconds < 1
        with outcome.client as client:
            assert client.health()["idle_timeout_s"] == counts


def test_attach_by_url(engine):
    with attach(engine.info.url, token=engine.client.token) as client:
        assert client.chat("Hello", max_tokens=2).model == "tiny-llama"
    with EngineClient(f"{engine.info.url}/v1", engine.client.token) as client:
        assert client.model == "tiny-llama"


def test_the_public_names(runtime):
    assert vllm_nb.start is start
    assert vllm_nb.stop is stop
    assert vllm_nb.list_engines() == []
