"""Which engine a notebook talks to: started, found, attached, chosen and ended."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError

from vllm_nb.client import process
from vllm_nb.client.http import EngineClient
from vllm_nb.client.outcomes import Failed, Outcome, Stopped, TimedOut
from vllm_nb.client.registry import ProcessInfo
from vllm_nb.errors import EngineDeadError, VllmNbError
from vllm_nb.notebook.display import View
from vllm_nb.notebook.failures import EngineFailure, Interrupted, told_to_the_user
from vllm_nb.notebook.settings import Settings
from vllm_nb.progress import Report

_POLL = 0.1  # seconds between two looks at an engine that loads


@dataclass(frozen=True)
class Engine:
    """What `%%vllm` can talk to. info: of a process of this user; None for a server that was attached by its URL."""

    client: EngineClient
    info: ProcessInfo | None = None

    @property
    def name(self) -> str:
        return self.client.name

    @property
    def log_path(self) -> Path | None:
        return None if self.info is None else self.info.log_path


class Engines:
    """The engines as one notebook sees them; `current` is what `%%vllm` talks to, `attached` are servers by name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.current: Engine | None = None
        self.attached: dict[str, Engine] = {}
        self._by_default = False  # nobody asked for the current one: a cell needed an engine, and there was none

    def start(self, model: str, view: View, **options: Any) -> Outcome:
        """Start an engine or reuse it, and make it the current one. options: as vllm_nb.start takes them, and before
        what the notebook's settings say."""
        try:
            with told_to_the_user():
                outcome = process.start(model, on_progress=view.progress, **self._settings.start_defaults() | options)
        except KeyboardInterrupt as interrupt:  # the message says that the engine goes on loading
            view.clear()
            raise Interrupted(str(interrupt)) from None
        except BaseException:
            view.clear()
            raise
        if isinstance(outcome, Failed | TimedOut):
            view.clear()
            raise _failure(outcome)
        self._choose(Engine(outcome.client, outcome.info))
        return outcome

    def ready(self, name: str | None, view: View) -> Engine:
        """The engine of that name, or the one in use, or a new one of the default model; it waits until the model is
        loaded."""
        if name is not None:
            return self._wait(self.find(name), view)
        if (engine := self.in_use(view)) is not None:
            return engine
        self.start(self._settings.model, view)
        self._by_default = True
        assert self.current is not None
        return self.current

    def in_use(self, view: View) -> Engine | None:
        """The current engine, or the only one that runs, once its model is loaded. None where there is none."""
        if self.current is None:
            self.current = self._only_one()
        if self.current is None:
            return None
        try:
            return self._wait(self.current, view)
        except EngineFailure as failure:
            if self._by_default and isinstance(failure.__cause__, EngineDeadError):
                return None
            raise

    def use(self, name: str) -> None:
        """Make an engine the current one. Raises UsageError for an unknown name."""
        self._choose(self.find(name))

    def attach(self, url: str, *, key: str | None = None, name: str | None = None) -> None:
        """Make a server the current engine, once it has answered. Raises EngineFailure where it does not."""
        with told_to_the_user():
            client = EngineClient(url, key, name=name)
            try:
                model = client.model
            except EngineDeadError as error:
                raise EngineFailure(f"cannot attach {url}: nothing answers there") from error
            except VllmNbError as error:
                raise EngineFailure(f"cannot attach {url}: {error}") from error
        if not model:
            raise EngineFailure(f"cannot attach {url}: it lists no model under /v1/models")
        self.attached[client.name] = Engine(client)
        self._choose(self.attached[client.name])

    def stop(self, name: str | None, *, all: bool = False) -> list[Stopped]:
        """End engines: all, the named one, or the current one."""
        if not all and (name in self.attached or (name is None and self.current and self.current.info is None)):
            raise UsageError("%vllm stop: this server was attached by its URL, so it is not for us to end")
        if name is None and not all and self.current is not None and self.current.info is not None:
            name = self.current.info.id
        with told_to_the_user():
            stopped = process.stop(name, all=all)
        if self.current is not None and self.current.info and self.current.info.pid in {each.pid for each in stopped}:
            self.current = None
        return stopped

    def running(self) -> list[ProcessInfo]:
        """The processes of this user."""
        with told_to_the_user():
            return process.list_engines()

    def is_current(self, name_or_id: str) -> bool:
        engine = self.current
        return engine is not None and name_or_id == (engine.info.id if engine.info else engine.name)

    def log_of(self, name: str | None) -> ProcessInfo:
        """Whose log to show. Raises UsageError where it isn't clear, or elsewhere."""
        if name in self.attached or (name is None and self.current and self.current.info is None):
            raise UsageError("%vllm logs: this server was attached by its URL; its log is where it runs")
        if name is None and self.current is not None and self.current.info is not None:
            return self.current.info
        with told_to_the_user():
            return process.find(name)

    def find(self, name: str) -> Engine:
        """By name or id. Raises UsageError that names those there are."""
        if name in self.attached:
            return self.attached[name]
        with told_to_the_user():
            info = process.find(name)
            return Engine(process.attach(info.id), info)

    def _choose(self, engine: Engine) -> None:
        self.current, self._by_default = engine, False

    def _only_one(self) -> Engine | None:
        """What runs, where that leaves no choice."""
        running = self.running()
        if len(running) > 1:
            names = ", ".join(info.name for info in running)
            raise UsageError(
                f"%%vllm: several engines run ({names}); choose one: %vllm use NAME, or %%vllm --engine NAME"
            )
        return self.find(running[0].id) if running else None

    def _wait(self, engine: Engine, view: View) -> Engine:
        """Ask it how it is until it is ready: two milliseconds when it is, and when not, a cell that says why."""
        if engine.info is None:
            return engine
        try:
            with told_to_the_user(engine.log_path):
                while (health := engine.client.health())["status"] == "loading":
                    if health.get("progress"):
                        view.progress(Report(**health["progress"]))
                    time.sleep(_POLL)
        except BaseException as error:
            view.clear()
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"stopped waiting; engine {engine.name!r} goes on loading") from None
            raise
        if health["status"] == "failed":
            view.clear()
            fix = f"Start it again: %vllm start {engine.info.model}"
            raise EngineFailure(health["error"], fix=fix, log_path=engine.log_path)
        return engine


def _failure(outcome: Failed | TimedOut) -> EngineFailure:
    if isinstance(outcome, TimedOut):  # its message names the log, and what to do
        return EngineFailure(outcome.message)
    rest = [line for line in outcome.log_tail.splitlines() if outcome.message not in line]  # don't say it twice
    return EngineFailure(outcome.message, log_tail="\n".join(rest), log_path=outcome.log_path)
