"""What Tab offers, asked of IPython's own completer."""

import warnings

import pytest
from IPython.core.interactiveshell import InteractiveShell

from vllm_nb.notebook.commands import COMMANDS, Group, command_parser


def offered(shell: InteractiveShell, text: str) -> list[str]:
    """What the completion of `text`, the cursor at its end, would put in place of its last word."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [text[found.start : found.start] + found.text for found in shell.Completer.completions(text, len(text))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%vllm st", ["start", "step", "stop"]),
        ("%vllm start --max-m", ["--max-model-len"]),
        ("%vllm start --device ", ["auto", "cpu", "cuda", "mps"]),
        ("%vllm start smol", ["smollm2"]),
        ("%vllm panel ", ["--help", "-h", "kv", "memory", "paging", "schedule", "throughput", "tokens"]),
        ("%vllm panel s", ["schedule"]),
        ("%vllm chat sel", ["select"]),
        ("%vllm chat show t", ["talk"]),
        ("%vllm chat fork talk --a", ["--at"]),
        ("%%vllm --temp", ["--temperature"]),
        ("%%vllm --chat t", ["talk"]),
        ("%%vllm --thinking o", ["off", "on"]),
        ("%%vllm --schema Cit", ["City"]),
        ("%%vllm --system {{ nam", ["name"]),
        ("%%vllm --raw\nHello {{ nam", ["name"]),
        ("%%vllm --raw\nHello {{ name }} and {{na", ["name"]),
    ],
)
def test_what_is_offered(shell: InteractiveShell, text: str, expected: list[str]) -> None:
    shell.user_ns |= {"name": "Ada", "City": dict}
    shell.magics_manager.registry["VllmMagics"]._session.conversation("talk")
    assert offered(shell, text) == expected


def test_every_choice_of_an_argument_is_offered(shell: InteractiveShell) -> None:
    for name, command in COMMANDS.items():
        if isinstance(found := command.load(), Group):
            continue
        place = [action for action in command_parser(f"%vllm {name}", found)._actions if not action.option_strings]
        for action in place[:1]:
            assert {*(action.choices or ())} <= {*offered(shell, f"%vllm {name} ")}, name


def test_engines_by_name(shell: InteractiveShell, engine) -> None:
    for text in ("%vllm use ", "%vllm stop sm", "%vllm logs sm", "%%vllm --engine sm", "%vllm attach sm"):
        assert "smollm2" in offered(shell, text)


def test_everything_else_is_left_to_ipython(shell: InteractiveShell) -> None:
    shell.user_ns["vllmish"] = 1
    assert offered(shell, "vllmis") == ["vllmish"]
    assert "%vllm" in offered(shell, "%vll")
    assert offered(shell, "%%vllm\nHello --temp") == []
    assert not any(text.startswith("--") for text in offered(shell, "%vllm nothing "))
    shell.run_line_magic("unload_ext", "vllm_nb")
    assert "--temperature" not in offered(shell, "%%vllm --temp")
    shell.run_line_magic("load_ext", "vllm_nb")


def test_help_by_question_mark(shell: InteractiveShell, run, capsys) -> None:
    run("%vllm?")
    assert "%vllm start [MODEL]" in capsys.readouterr().out
