"""Which engine a notebook talks to: the default one, a chosen one, one that is gone."""

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


@pytest.mark.usefixtures("empty_machine")
def test_from_nothing_to_an_answer_and_back(shell: InteractiveShell, run, capsys) -> None:
    outputs = shell.display_pub.outputs
    assert "No engine is running" in run("%vllm ps").result.text
    assert isinstance(run("%vllm stop").error_in_exec, UsageError)

    # A cell needs an engine: the default model is started, its progress and the answer in one display.
    assert run(CELL).result.model == "SmolLM2-135M-Instruct"
    shown = [output["data"]["text/plain"] for output in outputs]
    assert len({output["transient"]["display_id"] for output in outputs}) == 1
    assert shown[0] == "[Starting the engine process]"
    assert any("Loading" in text for text in shown)
    assert any("<progress" in output["data"].get("text/html", "") for output in outputs)

    # Another notebook ends it. Nobody chose it here, so it is started again.
    process.stop(all=True)
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
