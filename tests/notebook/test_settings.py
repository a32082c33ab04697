"""What holds where a flag is not given, and in which order it is looked for."""

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets import TraitError
from traitlets.config import Config

from vllm_nb.notebook.magics import VllmMagics


def settings(shell: InteractiveShell) -> VllmMagics:
    return shell.magics_manager.registry["VllmMagics"]


def reload(shell: InteractiveShell) -> VllmMagics:
    shell.run_line_magic("reload_ext", "vllm_nb")
    return settings(shell)


def test_config_lists_and_sets_them(shell: InteractiveShell, capsys) -> None:
    shell.run_line_magic("config", "")
    assert "VllmMagics" in capsys.readouterr().out
    shell.run_line_magic("config", "VllmMagics")
    page = capsys.readouterr().out
    assert "VllmMagics.temperature=<Float>" in page
    assert "longest answer" in page
    shell.run_line_magic("config", "VllmMagics.temperature = 0")
    assert settings(shell).cell_defaults()["temperature"] == 0
    with pytest.raises(TraitError, match="temperature must be a number from 0 to 100, not -1"):
        settings(shell).temperature = -1
    with pytest.raises(TraitError, match="device must be one of auto, cpu, cuda, mps"):
        settings(shell).device = "tpu"


def test_the_nearest_project_has_its_say(shell: InteractiveShell, tmp_path, monkeypatch) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "pyproject.toml").write_text(
        "[tool.vllm_nb]\ntemperature = 0.25\nmodel = 'org/name'\nidle_timeout = 0\n"
        "max_model_len = 512\nstream = false\n"
    )
    (inner / "pyproject.toml").write_text("[tool.other]\n")  # without our table: look further up
    monkeypatch.chdir(inner)
    shell.config = Config({"VllmMagics": {"temperature": 0.75, "top_p": 0.5}})
    loaded = reload(shell)
    assert loaded.cell_defaults() == {"temperature": 0.25, "top_p": 0.5, "no_stream": True, "yes": False}
    assert loaded.start_defaults() == {"max_model_len": 512, "idle_timeout": None}
    assert loaded.model == "org/name"
    shell.run_line_magic("config", "VllmMagics.temperature = 1")
    assert loaded.cell_defaults()["temperature"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[tool.vllm_nb]\ntemprature = 1",
            r"pyproject.toml: \[tool.vllm_nb\] temprature: there is no such setting; did",
        ),
        (
            "[tool.vllm_nb]\ntemperature = -1",
            r"\[tool.vllm_nb\] temperature: temperature must be a number from 0 to 100",
        ),
        ("[tool.vllm_nb]\ntemperature = 'hot'", r"\[tool.vllm_nb\] temperature: .*expected a float, not the str"),
        ("[tool.vllm_nb]\ntool_rounds = 0", r"\[tool.vllm_nb\] tool_rounds: .*not be less than 1"),
        ("[tool.vllm_nb", r"pyproject.toml cannot be read: "),
    ],
)
def test_a_wrong_project_is_told_when_the_extension_is_loaded(shell, tmp_path, monkeypatch, text, message) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        VllmMagics(shell)
    shell.configurables.pop()


@pytest.mark.usefixtures("engine")
def test_cells_follow_them_and_flags_go_first(shell: InteractiveShell, run) -> None:
    run("%config VllmMagics.max_tokens = 3")
    run("%config VllmMagics.temperature = 0")
    assert len(run("%%vllm\nWhat is the sea?").result.token_ids) == 3
    assert len(run("%%vllm --max-tokens 5\nWhat is the sea?").result.token_ids) == 5
