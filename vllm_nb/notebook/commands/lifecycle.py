"""`%vllm start`, `ps`, `use` and `stop`: the life of an engine process, as vllm_nb.start and its neighbours have it."""

import argparse
import re
import typing
from dataclasses import fields
from typing import Any

from IPython.core.error import UsageError

from vllm_nb.client.process import DEFAULT_MODEL
from vllm_nb.config import NOT_YET, SETTINGS_CHOICES, SETTINGS_HELP, EngineConfig
from vllm_nb.notebook.commands import Action, no_arguments
from vllm_nb.notebook.display import Table
from vllm_nb.notebook.parser import Parser
from vllm_nb.notebook.session import Session
from vllm_nb.notebook.tables import engine_table, outcome_table, stopped_table

_PROCESS = ("name", "timeout", "idle_timeout", "with_kernel")  # what is not about the engine inside


def _start_arguments(parser: Parser) -> None:
    model = parser.add_argument(
        "model",
        nargs="?",
        help=f"'{DEFAULT_MODEL}' (the default), a hub id, a folder of safetensors, or a GGUF file",
    )
    parser.completes(model, "models")
    parser.add_argument("--name", help="what to call it; the default is the model's name")
    parser.add_argument(
        "--idle-timeout", type=float, metavar="SECONDS", help="end after so long without requests; 0: never"
    )
    parser.add_argument(
        "--with-kernel", action="store_true", default=None, help="end when this notebook's kernel ends or restarts"
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="how long to wait until it is ready")
    _add_settings(parser.add_argument_group("settings of the engine"))


def _add_settings(group: Any) -> None:
    """A flag for each field of EngineConfig, and for what is not there yet."""
    for setting in fields(EngineConfig):
        flag = f"--{setting.name.replace('_', '-')}"
        if setting.type is bool:
            off = flag.replace("--", "--no-", 1)
            group.add_argument(
                off, dest=setting.name, action="store_false", default=None, help=f"don't {SETTINGS_HELP[setting.name]}"
            )
            continue
        kind: Any = next((kind for kind in typing.get_args(setting.type) if kind is not type(None)), setting.type)
        choices = SETTINGS_CHOICES.get(setting.name)
        metavar = None if choices else {float: "X", int: "N"}.get(kind)
        group.add_argument(flag, type=kind, choices=choices, metavar=metavar, help=SETTINGS_HELP[setting.name])
    for name, (metavar, text) in NOT_YET.items():
        action: dict[str, Any] = {"metavar": metavar} if metavar else {"action": "store_true", "default": None}
        group.add_argument(f"--{name.replace('_', '-')}", help=text, **action)


def start_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What was given of vllm_nb.start's options and EngineConfig's fields. Raises UsageError for a wrong value."""
    given = {
        name: value for name, value in vars(options).items() if name not in ("model", "help") and value is not None
    }
    for name, (_, text) in NOT_YET.items():
        if name in given:
            raise UsageError(f"%vllm start: --{name.replace('_', '-')}: {text}")
    try:
        EngineConfig.from_dict({name: value for name, value in given.items() if name not in _PROCESS})
    except ValueError as error:
        raise UsageError(f"%vllm start: {error}") from None
    if "idle_timeout" in given:
        given["idle_timeout"] = given["idle_timeout"] or None
    return given


def _start(session: Session, options: argparse.Namespace) -> None:
    settings = start_settings(options)
    view = session.view()
    model = options.model or session.settings.model
    view.finish(outcome_table(session.engines.start(model, view, **settings)))


def _ps(session: Session, options: argparse.Namespace) -> Table:
    return engine_table(session.engines)


def _use_arguments(parser: Parser) -> None:
    parser.completes(parser.add_argument("name", help="as %%vllm ps names it"), "engines")


def _use(session: Session, options: argparse.Namespace) -> Table:
    session.engines.use(options.name)
    return engine_table(session.engines)


def _attach_arguments(parser: Parser) -> None:
    where = parser.add_argument("where", metavar="NAME|URL", help="an engine of %%vllm ps, or http://HOST:PORT/v1")
    parser.completes(where, "engines")
    parser.add_argument("--key", help="API key of a server, best as {{ key }}: what is written here stays in the file")
    parser.add_argument("--name", help="what to call a server; the default is its URL")


def _attach(session: Session, options: argparse.Namespace) -> Table:
    if re.match(r"https?://", options.where):
        session.engines.attach(options.where, key=options.key, name=options.name)
    elif options.key or options.name:
        raise UsageError("%vllm attach: --key and --name are for the URL of a server, such as http://127.0.0.1:8000/v1")
    else:
        session.engines.use(options.where)
    return engine_table(session.engines)


def _stop_arguments(parser: Parser) -> None:
    parser.completes(parser.add_argument("name", nargs="?", help="as %%vllm ps names it"), "engines")
    parser.add_argument("--all", action="store_true", help="every engine of yours on this machine")


def _stop(session: Session, options: argparse.Namespace) -> Table:
    return stopped_table(session.engines.stop(options.name, all=options.all))


START = Action(
    "Start an engine, or reuse the one that already runs with this model and these settings.", _start_arguments, _start
)
PS = Action("The engines that run on this machine, and the servers that were attached.", no_arguments, _ps)
USE = Action("Choose the engine that %%vllm talks to in this notebook.", _use_arguments, _use)
ATTACH = Action(
    "Talk to an engine that runs, or to any server with OpenAI's routes. What only our engine can do says so.",
    _attach_arguments,
    _attach,
)
STOP = Action("End an engine and free its memory: the one in use, a named one, or all.", _stop_arguments, _stop)
