"""`%vllm start`, `ps`, `use` and `stop`: the life of an engine process, as vllm_nb.start and its neighbours have it."""

import argparse
from typing import Any

from IPython.core.error import UsageError

from vllm_nb.client.process import DEFAULT_MODEL
from vllm_nb.config import BACKENDS, DEVICES, DTYPES, EngineConfig
from vllm_nb.notebook.commands import Action
from vllm_nb.notebook.display import Table
from vllm_nb.notebook.engines import outcome_table
from vllm_nb.notebook.parser import Parser
from vllm_nb.notebook.session import Session

_CONFIG = (
    ("--device", str, DEVICES, "where it runs"),
    ("--backend", str, BACKENDS, "whose kernels"),
    ("--dtype", str, DTYPES, "of activations and KV cache"),
    ("--max-model-len", int, None, "prompt and answer together, in tokens"),
    ("--max-num-seqs", int, None, "requests that run at once"),
    ("--kv-fraction", float, None, "most of the free memory that the KV cache may take"),
    ("--threads", int, None, "CPU threads"),
)
_PROCESS = ("name", "timeout", "idle_timeout")  # what is not about the engine inside


def _start_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        help=f"'{DEFAULT_MODEL}' (the default), a hub id, a folder of safetensors, or a GGUF file",
    )
    parser.add_argument("--name", help="what to call it; the default is the model's name")
    settings = parser.add_argument_group("settings of the engine")
    for flag, kind, choices, text in _CONFIG:
        metavar = None if choices else "X" if kind is float else "N"
        settings.add_argument(flag, type=kind, choices=choices, metavar=metavar, help=text)
    settings.add_argument(
        "--no-prefix-cache", dest="prefix_cache", action="store_false", default=None, help="share nothing"
    )
    parser.add_argument(
        "--idle-timeout", type=float, metavar="SECONDS", help="end after so long without requests; 0: never"
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="how long to wait until it is ready")


def start_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What was given of vllm_nb.start's options and EngineConfig's fields. Raises UsageError for a wrong value."""
    given = {
        name: value for name, value in vars(options).items() if name not in ("model", "help") and value is not None
    }
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
    view.finish(outcome_table(session.engines.start(options.model, view, **settings)))


def _no_arguments(parser: Parser) -> None:
    pass


def _ps(session: Session, options: argparse.Namespace) -> Table:
    return session.engines.table()


def _use_arguments(parser: Parser) -> None:
    parser.add_argument("name", help="as %%vllm ps names it")


def _use(session: Session, options: argparse.Namespace) -> Table:
    session.engines.use(options.name)
    return session.engines.table()


def _stop_arguments(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", help="as %%vllm ps names it")
    parser.add_argument("--all", action="store_true", help="every engine of yours on this machine")


def _stop(session: Session, options: argparse.Namespace) -> Table:
    return session.engines.stop(options.name, all=options.all)


START = Action(
    "Start an engine, or reuse the one that already runs with this model and these settings.", _start_arguments, _start
)
PS = Action("The engines that run on this machine.", _no_arguments, _ps)
USE = Action("Choose the engine that %%vllm talks to in this notebook.", _use_arguments, _use)
STOP = Action("End an engine and free its memory: the one in use, a named one, or all.", _stop_arguments, _stop)
