"""Which engine a notebook talks to: started, found, chosen, ended, and shown as small tables."""

import time
from dataclasses import dataclass
from typing import Any

from IPython.core.error import UsageError

from vllm_nb.client import process
from vllm_nb.client.http import EngineClient
from vllm_nb.client.outcomes import Failed, Outcome, Reused, TimedOut
from vllm_nb.client.process import DEFAULT_MODEL
from vllm_nb.client.registry import EngineInfo
from vllm_nb.errors import EngineDeadError
from vllm_nb.notebook.display import Table, View
from vllm_nb.notebook.failures import EngineFailure, Interrupted, told_to_the_user
from vllm_nb.progress import Report

_POLL = 0.1  # seconds between two looks at an engine that loads


@dataclass(frozen=True)
class Engine:
    info: EngineInfo
    client: EngineClient


class Engines:
    """The engines as one notebook sees them; `current` is what `%%vllm` talks to."""

    def __init__(self) -> None:
        self.current: Engine | None = None
        self._by_default = False  # nobody asked for the current one: a cell needed an engine, and there was none

    def start(self, model: str, view: View, **options: Any) -> Outcome:
        """Start an engine or reuse it, and make it the current one. options: as vllm_nb.start takes them."""
        try:
            with told_to_the_user():
                outcome = process.start(model, on_progress=view.progress, **options)
        except KeyboardInterrupt as interrupt:  # the message says that the engine goes on loading
            view.clear()
            raise Interrupted(str(interrupt)) from None
        except BaseException:
            view.clear()
            raise
        if isinstance(outcome, Failed | TimedOut):
            view.clear()
            raise _failure(outcome)
        self.current, self._by_default = Engine(outcome.info, outcome.client), False
        return outcome

    def ready(self, name: str | None, view: View) -> Engine:
        """The engine of that name, or the current one, or the only one, or a new one of the default model; it waits
        until the model is loaded."""
        if name is not None:
            return self._wait(self._find(name), view)
        if self.current is None:
            self.current = self._only_one()
        if self.current is not None:
            try:
                return self._wait(self.current, view)
            except EngineFailure as failure:
                if not (self._by_default and isinstance(failure.__cause__, EngineDeadError)):
                    raise
        self.start(DEFAULT_MODEL, view)
        self._by_default = True
        assert self.current is not None
        return self.current

    def use(self, name: str) -> None:
        """Make an engine the current one. Raises UsageError for an unknown name."""
        self.current, self._by_default = self._find(name), False

    def stop(self, name: str | None, *, all: bool = False) -> Table:
        """End engines: all, the named one, or the current one."""
        if name is None and not all and self.current is not None:
            name = self.current.info.id
        with told_to_the_user():
            stopped = process.stop(name, all=all)
        if self.current is not None and self.current.info.pid in {each.pid for each in stopped}:
            self.current = None
        rows = [(each.name, str(each.pid), _HOW[each.how]) for each in stopped]
        return Table(("engine", "pid", ""), rows, "" if stopped else "No engine was running.")

    def table(self) -> Table:
        """Those that run, the current one marked."""
        with told_to_the_user():
            engines = process.list_engines()
        rows = [
            (self._mark(info), info.name, _model(info), *_activity(info), str(info.pid), info.url) for info in engines
        ]
        return Table(
            ("", "engine", "model", "status", "idle", "pid", "address"),
            rows,
            "" if rows else "No engine is running; %vllm start, or a %%vllm cell, starts one.",
        )

    def log_of(self, name: str | None) -> EngineInfo:
        """Whose log to show. Raises UsageError where it isn't clear."""
        if name is None and self.current is not None:
            return self.current.info
        with told_to_the_user():
            return process.find(name)

    def _mark(self, info: EngineInfo) -> str:
        return "▸" if self.current is not None and self.current.info.id == info.id else ""

    def _find(self, name: str) -> Engine:
        with told_to_the_user():
            info = process.find(name)
            return Engine(info, process.attach(info.id))

    def _only_one(self) -> Engine | None:
        """What runs, where that leaves no choice."""
        with told_to_the_user():
            running = process.list_engines()
        if len(running) > 1:
            names = ", ".join(info.name for info in running)
            raise UsageError(
                f"%%vllm: several engines run ({names}); choose one: %vllm use NAME, or %%vllm --engine NAME"
            )
        return self._find(running[0].id) if running else None

    def _wait(self, engine: Engine, view: View) -> Engine:
        """Ask it how it is until it is ready: two milliseconds when it is, and when not, a cell that says why."""
        info = engine.info
        try:
            with told_to_the_user(info.log_path):
                while (health := engine.client.health())["status"] == "loading":
                    if health.get("progress"):
                        view.progress(Report(**health["progress"]))
                    time.sleep(_POLL)
        except BaseException as error:
            view.clear()
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"stopped waiting; engine {info.name!r} goes on loading") from None
            raise
        if health["status"] == "failed":
            view.clear()
            fix = f"Start it again: %vllm start {info.model}"
            raise EngineFailure(health["error"], fix=fix, log_path=info.log_path)
        return engine


_HOW = {
    "shutdown": "stopped",
    "terminated": "stopped (it had to be terminated)",
    "killed": "stopped (it had to be killed)",
}


def outcome_table(outcome: Outcome) -> Table:
    """What came of a start that worked."""
    assert not isinstance(outcome, Failed | TimedOut)
    info, took = outcome.info, f"{outcome.seconds:.2f} s"
    status = f"already running, reused in {took}" if isinstance(outcome, Reused) else f"started in {took}"
    context = f"{info.health['max_model_len']:,} tokens"
    return Table(("engine", "model", "context", "status"), [(info.name, _model(info), context, status)])


def _failure(outcome: Failed | TimedOut) -> EngineFailure:
    if isinstance(outcome, TimedOut):  # its message names the log, and what to do
        return EngineFailure(outcome.message)
    rest = [line for line in outcome.log_tail.splitlines() if outcome.message not in line]  # don't say it twice
    return EngineFailure(outcome.message, log_tail="\n".join(rest), log_path=outcome.log_path)


def _model(info: EngineInfo) -> str:
    """Its own name where it is known, else what was asked for."""
    return info.health.get("model") or info.model


def _activity(info: EngineInfo) -> tuple[str, str]:
    """(status, idle time)."""
    requests = info.health.get("requests") or 0
    status = info.status if not requests else f"{requests} request" if requests == 1 else f"{requests} requests"
    seconds = info.health.get("idle_s")
    return (
        status,
        "" if seconds is None or requests else f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s",
    )
