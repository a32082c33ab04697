"""The subcommands of `%vllm` as data. To add one: a line in COMMANDS, and an Action in a module of this folder."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from IPython.core.error import UsageError

from vllm_nb.notebook.interpolate import did_you_mean
from vllm_nb.notebook.parser import Parser
from vllm_nb.notebook.session import Session


@dataclass(frozen=True)
class Action:
    """What a subcommand is: its description, the arguments it adds to a parser, and what it does with them.

    What `run` returns is the magic's value, which the notebook shows.
    """

    description: str
    arguments: Callable[[Parser], None]
    run: Callable[[Session, argparse.Namespace], Any]


def no_arguments(parser: Parser) -> None:
    """For an Action that takes none."""


@dataclass(frozen=True)
class Command:
    """A line of the overview, and where the Action is: it is imported when the subcommand is used."""

    usage: str  # after the name: "[NAME]"
    summary: str
    target: str  # "module:NAME" of an Action or a Group, the module in this folder

    def load(self) -> "Action | Group":
        module, _, name = self.target.partition(":")
        found = getattr(import_module(f"{__name__}.{module}"), name)
        assert isinstance(found, Action | Group)
        return found


@dataclass(frozen=True)
class Group:
    """Subcommands of a subcommand. alone: what it does without any of them."""

    commands: Mapping[str, Command]
    alone: Callable[[Session], Any]


COMMANDS = {
    "start": Command("[MODEL]", "start an engine, or reuse the one that runs", "lifecycle:START"),
    "ps": Command("", "the engines that run", "lifecycle:PS"),
    "use": Command("NAME", "which of them %%vllm talks to in this notebook", "lifecycle:USE"),
    "attach": Command("NAME|URL", "the same, or any server with OpenAI's routes", "lifecycle:ATTACH"),
    "stop": Command("[NAME]", "end an engine", "lifecycle:STOP"),
    "ui": Command("[NAME]", "a link to an engine's web page: chat in a browser", "page:UI"),
    "logs": Command("[NAME]", "the end of an engine's log; -f follows it", "logs:LOGS"),
    "chat": Command("[ACTION]", "the conversations of %%vllm --chat NAME", "chat:CHAT"),
    "panel": Command("NAME", "a live picture: kv, throughput, schedule, ...", "inspect:PANEL"),
    "record": Command("FILE|--stop", "record what happens in the engine, to replay it anywhere", "inspect:RECORD"),
    "pause": Command("", "let the engine stand still between two steps", "inspect:PAUSE"),
    "step": Command("[N]", "make a step, and show what it did", "inspect:STEP"),
    "resume": Command("", "let it run on", "inspect:RESUME"),
    "models": Command("", "the models that are known on this machine", "machine:MODELS"),
    "doctor": Command("", "what is wrong with this installation, and what to do", "machine:DOCTOR"),
}


def command_parser(prog: str, action: Action) -> Parser:
    """prog: the magic and the subcommand, as people write them."""
    parser = Parser(prog, action.description)
    action.arguments(parser)
    return parser


def run(session: Session, words: list[str], *, magic: str = "%vllm", commands: Mapping[str, Command] = COMMANDS) -> Any:
    """Do what a line asks for: its first word is one of `commands`. Raises UsageError for a mistake in the words."""
    name, *rest = words
    if name not in commands:
        raise UsageError(f"{magic}: unknown subcommand {name!r}{did_you_mean(name, commands)}; {magic} lists them")
    found = commands[name].load()
    magic = f"{magic} {name}"
    if isinstance(found, Action):
        options = command_parser(magic, found).parse(rest)
        return None if options is None else found.run(session, options)
    if rest and rest[0] not in ("-h", "--help"):
        return run(session, rest, magic=magic, commands=found.commands)
    print(overview(magic, found.commands))
    return None if rest else found.alone(session)


def overview(magic: str = "%vllm", commands: Mapping[str, Command] = COMMANDS) -> str:
    """A line for each subcommand."""
    usages = {f"{magic} {name} {command.usage}".rstrip(): command.summary for name, command in commands.items()}
    width = max(map(len, usages)) + 2
    return "".join(f"{usage:<{width}}{summary}\n" for usage, summary in usages.items())
