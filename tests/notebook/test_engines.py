"""Which engine a notebook talks to: the default one, a chosen one, one that is gone."""

import importlib.metadata
import os
import signal
import threading
from pathlib import Path

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from vllm_nb.client import process
from vllm_nb.client.runtime_dir import ENVIRONMENT_NAME

CELL = "%%vllm --temperature 0 --max-tokens 4\nWhat is the capital of France?"


@pytest.fixture
def empty_machine(tmp_path, monkeypatch):
    """No engine runs, and none is left."""
    folder = tmp_path / "runtime"
    monkeypatch.setenv(ENVIRONMENT_NAME, str(folder))
    yield
    process.stop(all=True)


def refuse_to_look(run, folder: Path) -> None:
    """Commands that look into an engine start none."""
    for line in ("panel kv", "ui", "step", "pause", "resume", f"record {folder}/x.vnb"):
        error = run(f"%vllm {line}").error_in_exec
        assert type(error) is UsageError, line
        assert str(error) == "no engine is running; %vllm start, or a %%vllm cell, starts one", line
    assert process.list_engines() == []


@pytest.mark.usefixtures("empty_machine")
def test_from_nothing_to_an_answer_and_back(shell: InteractiveShell, run, capsys, tmp_path: Path) -> None:
    outputs = shell.display_pub.outputs
    assert run("%vllm ps").result.text == "No engine is running; %vllm start starts one."
    assert isinstance(run("%vllm stop").error_in_exec, UsageError)
    refuse_to_look(run, tmp_path)

    # A cell needs an engine: the default model is started, its progress and the answer in one display.
    assert run(CELL).result.model == "SmolLM2-135M-Instruct"
    shown = [output["data"]["text/plain"] for output in outputs]
    assert len({output["transient"]["display_id"] for output in outputs}) == 1
    assert shown[0] == "[Starting the engine process]"
    assert any("Loading" in text for text in shown)
    assert any("<progress" in output["data"].get("text/html", "") for output in outputs)

    # Another notebook ends it. Nobody chose it here, so it is started again: by a cell, not by a look.
    process.stop(all=True)
    refuse_to_look(run, tmp_path)
    assert run(CELL).result.text

    # Chosen by hand, it is not replaced by whatever is the default: the cell says what happened, and the way back.
    run("%vllm use smollm2")
    assert [row[0] for row in run("%vllm ps").result.rows] == ["▸"]
    process.stop("smollm2")
    capsys.readouterr()
    assert type(run(CELL).error_in_exec).__name__ == "EngineFailure"
    message = capsys.readouterr().out
    assert "not running any more" in message
    assert "%vllm start" in message
    assert run("%vllm ps").result.text == "No engine is running; %vllm start starts one."  # a cell would not
    assert process.list_engines() == []

    # A notebook that has chosen none takes the only one there is, whatever it is.
    process.start(name="small", max_model_len=256)
    shell.run_line_magic("reload_ext", "vllm_nb")
    assert run(CELL).result.text
    assert [info.name for info in process.list_engines()] == ["small"]


@pytest.mark.usefixtures("engine")
class TestOneThatRuns:
    def test_start_reuses_it_in_less_than_a_second_and_says_so(self, shell: InteractiveShell, run) -> None:
        result = run("%vllm start")
        assert result.success
        shown = shell.display_pub.outputs[-1]["data"]
        assert "already running, reused in 0." in shown["text/plain"]
        assert "SmolLM2-135M-Instruct" in shown["text/html"]

    def test_ps_shows_and_marks_it(self, run) -> None:
        run("%vllm start")
        [row] = run("%vllm ps").result.rows
        assert row[:4] == ("▸", "smollm2", "SmolLM2-135M-Instruct", "ready")

    def test_a_server_is_attached_by_its_url_and_says_what_only_ours_can_do(
        self, shell: InteractiveShell, run, openai_server, capsys
    ) -> None:
        run("%vllm start")
        shell.user_ns["key"] = "key"
        wrong = run(f"%vllm attach {openai_server.url}").error_in_exec
        assert type(wrong).__name__ == "EngineFailure"
        assert "refuses the token: Incorrect API key provided" in str(wrong)
        rows = run(f"%vllm attach {openai_server.url} --key {{{{ key }}}} --name cloud").result.rows
        assert [(row[0], row[1], row[3]) for row in rows] == [("", "smollm2", "ready"), ("▸", "cloud", "attached")]
        assert run("%%vllm\nHello").result.text == "Hi you"
        assert "2 tokens" in shell.display_pub.outputs[-1]["data"]["text/markdown"]
        assert "Unrecognized request argument supplied: top_k" in str(run("%%vllm --top-k 3\nHello").error_in_exec)
        for line in ("%vllm stop", "%vllm stop cloud", "%vllm logs"):
            assert "was attached by its URL" in str(run(line).error_in_exec)
        assert run("%vllm attach smollm2").result.rows[0][0] == "▸"
        assert run("%%vllm --engine cloud\nHello").result.model == "gpt-x"
        mistake = run("%vllm attach smollm2 --key x").error_in_exec
        assert type(mistake) is UsageError
        assert "--key and --name are for the URL of a server" in str(mistake)

    def test_models_says_what_runs(self, run) -> None:
        run("%vllm start")
        rows = {row[0]: row[1:] for row in run("%vllm models").result.rows}
        assert rows["smollm2"] == ("Python wheel", "98 MB", "runs as smollm2")
        assert rows["gemma3-270m"][0] == "Python wheel"

    def test_logs_are_followed_until_the_engine_ends_or_an_interrupt(self, run, capsys, tiny_model_path) -> None:
        run(f"%vllm start {tiny_model_path} --name brief --num-kv-blocks 64")
        timer = threading.Timer(0.5, lambda: process.stop("brief"))
        timer.start()
        assert run("%vllm logs -f").success
        assert "(the engine has ended)" in capsys.readouterr().out
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        assert run("%vllm logs smollm2 -f").success
        assert "Error" not in capsys.readouterr().out

    def test_logs(self, run, capsys) -> None:
        run("%vllm logs --lines 3")
        assert "smollm2" in capsys.readouterr().out.lower()

    def test_vllm_alone_is_help_and_what_runs(self, run, capsys) -> None:
        run("%vllm")
        shown = capsys.readouterr().out
        assert "%vllm start [MODEL]" in shown
        assert "--temperature" not in shown
        assert "SmolLM2-135M-Instruct" in shown

    def test_help_lists_the_flags_of_the_cell(self, run, capsys) -> None:
        for line in ("%vllm -h", "%vllm --help", "%%vllm -h\n."):
            run(line)
            assert "--temperature X" in capsys.readouterr().out

    def test_another_configuration_is_another_engine_and_then_a_name_is_needed(self, shell, run) -> None:
        run("%vllm start --name small --max-model-len 256 --max-num-seqs 2")
        assert "256 tokens" in shell.display_pub.outputs[-1]["data"]["text/plain"]
        try:
            names = {info.name for info in process.list_engines()}
            assert names == {"smollm2", "small"}
            shell.run_line_magic("reload_ext", "vllm_nb")  # a notebook that has chosen none
            error = run(CELL).error_in_exec
            assert type(error) is UsageError
            assert "several engines run (smollm2, small)" in str(error)
            assert run(CELL.replace("%%vllm", "%%vllm --engine small")).result.text
        finally:
            run("%vllm stop small")
        assert [info.name for info in process.list_engines()] == ["smollm2"]


def test_doctor_examines_in_a_process_of_its_own(run) -> None:
    rows = run("%vllm doctor").result.rows
    subjects = [row[1] for row in rows]
    assert {"vllm_nb", "torch", "processor", "default model", "ipykernel"} <= set(subjects)
    assert ("✓", "ipykernel", importlib.metadata.version("ipykernel")) in rows
