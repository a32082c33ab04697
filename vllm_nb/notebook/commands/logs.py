"""`%vllm logs`: what an engine process has written."""

import argparse

from IPython.core.error import UsageError

from vllm_nb.notebook.commands import Action
from vllm_nb.notebook.parser import Parser
from vllm_nb.notebook.session import Session


def _arguments(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", help="as %%vllm ps names it; the default is the engine in use")
    parser.add_argument("--lines", type=int, default=40, metavar="N", help="how many")


def _logs(session: Session, options: argparse.Namespace) -> None:
    path = session.engines.log_of(options.name).log_path
    if options.lines < 1:
        raise UsageError(f"%vllm logs: --lines takes a number of at least 1, not {options.lines}")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    print("\n".join([*lines[-options.lines :], f"({path})"]))


LOGS = Action("The end of an engine's log.", _arguments, _logs)
