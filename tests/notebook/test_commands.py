"""The subcommands as data: all there, all with help, and their own flags."""

import argparse

import pytest
from IPython.core.error import UsageError

from vllm_nb.config import EngineConfig
from vllm_nb.notebook.arguments import cell_parser
from vllm_nb.notebook.commands import COMMANDS, Action, Command, command_parser, lifecycle, overview, run
from vllm_nb.notebook.parser import Parser, split


def start(line: str) -> argparse.Namespace:
    options = command_parser("%vllm start", lifecycle.START).parse(split(line, {}))
    assert options is not None
    return options


@pytest.mark.parametrize("name", [*COMMANDS, "%%vllm"])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_printed_and_nothing_else_happens(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name in COMMANDS:
        assert run("no session is needed", [name, flag]) is None
    else:
        assert cell_parser().parse([flag]) is None
    page = capsys.readouterr().out
    assert "show this and do nothing" in page or page.startswith(f"%vllm {name} ")


def test_the_overview_has_a_line_for_each_with_the_summaries_in_one_column() -> None:
    lines = overview().splitlines()
    assert [line.split()[1] for line in lines] == list(COMMANDS)
    assert len({line.index(command.summary) for line, command in zip(lines, COMMANDS.values(), strict=True)}) == 1


def test_a_command_of_ones_own_is_a_line_and_an_action(monkeypatch: pytest.MonkeyPatch) -> None:
    def arguments(parser: Parser) -> None:
        parser.add_argument("number", type=int)

    action = Action("Double it.", arguments, lambda session, options: (session, options.number * 2))
    monkeypatch.setattr("vllm_nb.notebook.commands.logs.DOUBLE", action, raising=False)
    table = {"double": Command("N", "twice", "logs:DOUBLE")}
    assert run("a session", ["double", "4"], commands=table) == ("a session", 8)
    with pytest.raises(UsageError, match=r"%vllm double: argument number: invalid int value: 'x'"):
        run("a session", ["double", "x"], commands=table)
    with pytest.raises(UsageError, match=r"%vllm: unknown subcommand 'doubel'; did you mean 'double'\?"):
        run("a session", ["doubel"], commands=table)


def test_start_settings() -> None:
    options = start("org/model --name lab --dtype float32 --threads 2 --no-prefix-cache")
    assert (options.model, options.name) == ("org/model", "lab")
    assert lifecycle.start_settings(options) == {"name": "lab", "dtype": "float32", "threads": 2, "prefix_cache": False}


def test_start_without_arguments_is_the_default_model() -> None:
    assert start("").model is None  # then the settings say which
    assert lifecycle.start_settings(start("")) == {}


def test_start_checks_settings_before_any_process_starts() -> None:
    with pytest.raises(UsageError, match=r"%vllm start: kv_fraction must be a number from 0\.01 to 0\.95, not 3\.0"):
        lifecycle.start_settings(start("--kv-fraction 3"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--isq q4k", "quantising while loading is not built yet: give a file that is quantised already"),
        ("--ranks 0,1", "several GPUs or ranks are not built yet"),
        ("--fp8-kvcache", "an fp8 KV cache is not built yet"),
    ],
)
def test_what_the_engine_has_not_yet_says_so(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lifecycle.start_settings(start(line))


def test_every_setting_of_the_engine_has_a_flag() -> None:
    page = command_parser("%vllm start", lifecycle.START).format_help()
    for name in EngineConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in page or f"--no-{name.replace('_', '-')}" in page
    assert lifecycle.start_settings(start("--with-kernel --idle-timeout 0")) == {
        "with_kernel": True,
        "idle_timeout": None,
    }
