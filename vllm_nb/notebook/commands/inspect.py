"""`%vllm panel`, `record`, `pause`, `step` and `resume`: what client.panel and its neighbours do, in a line."""

import argparse
from typing import TYPE_CHECKING

from IPython.core.error import UsageError

from vllm_nb.inspection.recording import RecordingError
from vllm_nb.notebook.commands import Action, no_arguments
from vllm_nb.notebook.display import Table
from vllm_nb.notebook.failures import EngineFailure, told_to_the_user
from vllm_nb.notebook.panels import PANELS
from vllm_nb.notebook.parser import Parser
from vllm_nb.notebook.session import Session
from vllm_nb.notebook.tables import step_table

if TYPE_CHECKING:
    from vllm_nb.notebook.panels.panel import Panel


def _panel_arguments(parser: Parser) -> None:
    what = "what to show; docs/glossary.md says what each one is"
    parser.completes(parser.add_argument("name", choices=tuple(PANELS), help=what), "panels")


def _panel(session: Session, options: argparse.Namespace) -> "Panel":
    engine = session.engine_in_use()
    with told_to_the_user(engine.log_path):
        return engine.client.panel(options.name)


def _record_arguments(parser: Parser) -> None:
    parser.add_argument("file", nargs="?", help="where to")
    parser.add_argument("--overwrite", action="store_true", help="replace the recording that FILE is")
    parser.add_argument("--stop", action="store_true", help="end the recording that runs")


def _record(session: Session, options: argparse.Namespace) -> None:
    if options.stop == (options.file is not None) or (options.stop and options.overwrite):
        raise UsageError("%vllm record: give a FILE to begin with, or --stop to end")
    if options.stop:
        if session.recorder is None:
            raise UsageError("%vllm record --stop: nothing is being recorded; %vllm record FILE begins")
        recorder, session.recorder = session.recorder, None
        with told_to_the_user():
            path = recorder.stop()
        print(f"{recorder.events:,} events in {path}; vllm_nb.replay({str(path)!r}) shows them again")
        return
    if session.recorder is not None:
        raise UsageError(f"%vllm record: {session.recorder.path} is being recorded; %vllm record --stop ends that")
    engine = session.engine_in_use()
    try:
        with told_to_the_user(engine.log_path):
            session.recorder = engine.client.record(options.file, overwrite=options.overwrite)
    except EngineFailure as failure:
        if isinstance(failure.__cause__, RecordingError):  # the file's fault, not the engine's
            raise UsageError(f"%vllm record: {failure}") from None
        raise
    print(f"recording {engine.name} to {session.recorder.path}; %vllm record --stop ends it")


def _pause(session: Session, options: argparse.Namespace) -> Table:
    engine = session.engine_in_use()
    with told_to_the_user(engine.log_path):
        engine.client.pause()
        return step_table(engine.client.view())


def _step_arguments(parser: Parser) -> None:
    parser.add_argument("count", nargs="?", type=int, default=1, metavar="N", help="how many steps (default 1)")


def _step(session: Session, options: argparse.Namespace) -> Table:
    if options.count < 1:
        raise UsageError(f"%vllm step: a number of at least 1 is needed, not {options.count}")
    engine = session.engine_in_use()
    with told_to_the_user(engine.log_path):
        made = engine.client.step(options.count)
        short = "" if made == options.count else f"Only {made} of {options.count} steps: nothing is left to compute."
        return step_table(engine.client.view(), short)


def _resume(session: Session, options: argparse.Namespace) -> None:
    engine = session.engine_in_use()
    with told_to_the_user(engine.log_path):
        engine.client.resume()
    print(f"{engine.name} runs on")


PANEL = Action("A live picture of the engine in use.", _panel_arguments, _panel)
RECORD = Action("Record all that happens in the engine in use, to be replayed anywhere.", _record_arguments, _record)
PAUSE = Action("Let the engine stand still between two steps; requests wait meanwhile.", no_arguments, _pause)
STEP = Action("Make steps, stand still again, and show what the last one did.", _step_arguments, _step)
RESUME = Action("Let a paused engine run on.", no_arguments, _resume)
