"""`%vllm logs`: what an engine process has written."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from IPython.core.error import UsageError

from vllm_nb.notebook.commands import Action
from vllm_nb.notebook.parser import Parser
from vllm_nb.notebook.session import Session

_POLL = 0.2  # seconds between two looks at a log that is followed


def _arguments(parser: Parser) -> None:
    name = parser.add_argument("name", nargs="?", help="as %%vllm ps names it; the default is the engine in use")
    parser.completes(name, "engines")
    parser.add_argument("--lines", type=int, default=40, metavar="N", help="how many")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the cell is interrupted")


def _logs(session: Session, options: argparse.Namespace) -> None:
    info = session.engines.log_of(options.name)
    if options.lines < 1:
        raise UsageError(f"%vllm logs: --lines takes a number of at least 1, not {options.lines}")
    text = info.log_path.read_text(encoding="utf-8", errors="replace")
    print("\n".join([*text.splitlines()[-options.lines :], f"({info.log_path})"]))
    if options.follow:
        _follow(
            info.log_path, len(text.encode()), lambda: any(info.id == other.id for other in session.engines.running())
        )


def _follow(path: Path, offset: int, runs: Callable[[], bool]) -> None:
    """Print what is added, until an interrupt or the engine's end."""
    with path.open("rb") as file:
        file.seek(offset)
        try:
            while True:
                if added := file.read():
                    print(added.decode(errors="replace"), end="", flush=True)
                elif not runs():
                    print("(the engine has ended)")
                    return
                else:
                    time.sleep(_POLL)
        except KeyboardInterrupt:  # the way to end it, and no error
            return


LOGS = Action("The end of an engine's log.", _arguments, _logs)
