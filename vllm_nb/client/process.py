"""Engine processes: start or reuse, list, attach, stop. An engine outlives the notebook kernel that started it.

outcome = start("smollm2", max_model_len=2048)
if outcome.ok:
    print(outcome.client.chat("Hello").text)
"""

import difflib
import math
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from vllm_nb.client.http import EngineClient
from vllm_nb.client.launch import EngineSpec, LaunchError, exit_code, launch
from vllm_nb.client.outcomes import Failed, Outcome, Reused, Started, Stopped, TimedOut
from vllm_nb.client.registry import (
    PROBE_TIMEOUT,
    EngineGone,
    EngineSilent,
    ProcessInfo,
    Registry,
    probe,
    process_runs,
    send_signal,
)
from vllm_nb.client.runtime_dir import runtime_dir, start_lock
from vllm_nb.connection import Connection
from vllm_nb.errors import VllmNbError
from vllm_nb.progress import Report

DEFAULT_MODEL = "smollm2"
IDLE_TIMEOUT = 1800.0  # seconds
START_TIMEOUT = 1800.0  # seconds; a first start may download
_POLL = 0.025
_GRACE = 5.0  # seconds that each way of ending a process gets
_STARTING = Report("Starting the engine process", 0, None, "")

OnProgress = Callable[[Report], None]
Running = list[tuple[Connection, ProcessInfo]]


def start(
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    name: str | None = None,
    timeout: float = START_TIMEOUT,
    idle_timeout: float | None = IDLE_TIMEOUT,
    with_kernel: bool = False,
    on_progress: OnProgress | None = None,
    **config: Any,
) -> Outcome:
    """Reuse the engine of this configuration, or start one, and wait until it is ready.

    name: what to call it, by default after the model. timeout: seconds to wait. idle_timeout: seconds without requests
    after which it ends, None for never; of several starts the longest counts. with_kernel: a new engine ends when this
    process (a notebook's kernel, a script) does, unless somebody else has started it too. config: fields of
    EngineConfig.

    Raises ValueError for wrong settings or a name in use. An interrupt ends the waiting only: the engine goes on
    loading, and the KeyboardInterrupt says so.
    """
    began = time.monotonic()
    if idle_timeout is not None and not 0 < idle_timeout < math.inf:
        raise ValueError(f"idle_timeout must be a positive number of seconds, or None for never, not {idle_timeout!r}")
    spec = EngineSpec.of(model, config)
    registry = Registry(runtime_dir())
    with start_lock(registry.folder):
        running = [entry for entry in registry.running(drop_unbound=True) if entry[1].status != "failed"]
        found = _match(running, spec, name)
        try:
            connection = found or launch(registry, spec, name or _free_name(spec, running), idle_timeout, with_kernel)
        except LaunchError as error:
            return _failed(registry, error.log_id, str(error), error.exit_code)
    try:
        outcome = _wait(registry, connection, found is not None, began, timeout, on_progress or (lambda _: None))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped waiting; engine {connection.name!r} (pid {connection.pid}) goes on loading: the next start waits "
            f"for it again, `%vllm stop {connection.name}` or `vllm-nb stop {connection.name}` ends it"
        ) from None
    if isinstance(outcome, Reused):
        _extend_idle_timeout(outcome, idle_timeout)
        if outcome.info.health.get("owner_pid") not in (None, os.getpid()):
            outcome.client.disown()
    return outcome


def list_engines() -> list[ProcessInfo]:
    """All engine processes of this user, oldest first. Files of dead ones are deleted on the way."""
    return [info for _, info in Registry(runtime_dir()).running()]


def find(name_or_id: str | None = None) -> ProcessInfo:
    """The engine with that name or id; None: the only one. Raises ValueError that names those there are."""
    return _find(Registry(runtime_dir()).running(), name_or_id)[1]


def attach(name_or_url: str | None = None, *, token: str | None = None) -> EngineClient:
    """A client of an engine that runs: by name or id (None: the only one), or by the URL of any server with OpenAI's
    routes, which may need a `token`. Raises ValueError for an unknown name."""
    if name_or_url is not None and re.match(r"https?://", name_or_url):
        return EngineClient(name_or_url, token)
    connection, info = _find(Registry(runtime_dir()).running(), name_or_url)
    return _client(connection, info.health)


def stop(name_or_id: str | None = None, *, all: bool = False) -> list[Stopped]:
    """End an engine (None: the only one), or all of them, and wait until the processes are gone.

    Raises ValueError for an unknown name or where none runs, VllmNbError when a process survives even SIGKILL.
    """
    registry = Registry(runtime_dir())
    running = registry.running()
    if not running and not all:
        raise ValueError("no engine is running")
    chosen = running if all else [_find(running, name_or_id)]
    return [_stop(registry, connection) for connection, _ in chosen]


# Names


_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)


def _match(running: Running, spec: EngineSpec, name: str | None) -> Connection | None:
    """The engine that can stand for `spec`. Raises ValueError when another one has the name."""
    if name is None:
        return next((connection for connection, _ in running if connection.key == spec.key), None)
    if not _NAME.fullmatch(name):
        raise ValueError(f"name must be up to 64 letters, digits, dots, dashes and underscores, not {name!r}")
    named = next((connection for connection, _ in running if connection.name == name), None)
    if named is not None and named.key != spec.key:
        raise ValueError(
            f"engine {name!r} runs already, with {named.model} or other settings: stop it first, or choose another name"
        )
    return named


def _free_name(spec: EngineSpec, running: Running) -> str:
    """The model's name, numbered from the second engine on."""
    taken = {connection.name for connection, _ in running}
    numbered = (f"{spec.short_name}-{number}" for number in range(2, len(taken) + 3))
    return next(name for name in (spec.short_name, *numbered) if name not in taken)


def _find(running: Running, name_or_id: str | None) -> tuple[Connection, ProcessInfo]:
    names = [info.name for _, info in running]
    if not running:
        raise ValueError("no engine is running; `%vllm start`, vllm_nb.start() or `vllm-nb run` starts one")
    if name_or_id is None:
        if len(running) > 1:
            raise ValueError(f"several engines are running: name one of {', '.join(names)}")
        return running[0]
    for connection, info in running:
        if name_or_id in (info.name, info.id):
            return connection, info
    near = difflib.get_close_matches(name_or_id, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"running are {', '.join(names)}"
    raise ValueError(f"no engine is called {name_or_id!r}; {hint}")


# Start


def _wait(
    registry: Registry, connection: Connection, reused: bool, began: float, timeout: float, on_progress: OnProgress
) -> Outcome:
    """Poll /health until the engine is ready, has failed, or the time is up."""
    relay = _ProgressRelay(on_progress)
    if not reused:
        relay(None)
    while True:
        left = began + timeout - time.monotonic()
        try:
            health: Mapping[str, Any] = probe(connection, min(PROBE_TIMEOUT, max(left, _POLL)))
        except EngineSilent:
            waiting = Report(f"Waiting for engine {connection.name!r} to answer", 0, None, "")
            health = {"status": "silent", "progress": asdict(waiting)}
        except EngineGone:
            health = {"status": "failed"}
        info, seconds = registry.info(connection, health), time.monotonic() - began
        if info.status == "ready":
            relay.finish()
            client = _client(connection, health)
            return Reused(info, client, seconds) if reused else Started(info, client, seconds)
        if info.status == "failed":
            _ends_within(connection, _GRACE)
            return _failed(registry, connection.id, health.get("error"), exit_code(connection.id))
        if left <= 0:
            message = (
                f"engine {connection.name!r} is not ready after {timeout:g} s and goes on loading: start again to wait "
                f"longer, or end it with `%vllm stop {connection.name}` or `vllm-nb stop {connection.name}`; "
                f"log: {info.log_path}"
            )
            return TimedOut(message, info, seconds, registry.log_tail(connection.id))
        relay(health.get("progress"))
        time.sleep(min(_POLL, left))


class _ProgressRelay:
    """Passes on what changes in the engine's reports; a phase that another follows is reported finished."""

    def __init__(self, on_progress: OnProgress):
        self._on_progress = on_progress
        self._last: Report | None = None

    def __call__(self, fields: Mapping[str, Any] | None) -> None:
        report = _STARTING if fields is None else Report(**fields)
        if report == self._last:
            return
        if self._last is not None and report.phase != self._last.phase:
            self.finish()
        self._on_progress(report)
        self._last = report

    def finish(self) -> None:
        if self._last is not None and not self._last.finished:
            self._on_progress(replace(self._last, finished=True))


def _failed(registry: Registry, log_id: str, message: str | None, exit_code: int | None) -> Failed:
    """`message`: the engine's own, where it could still say one; else what the log and the exit code tell."""
    tail = registry.log_tail(log_id)
    logged = [line.split(" ERROR ", 1)[1] for line in tail.splitlines() if " ERROR " in line]
    if message is None and logged:
        message = logged[-1].split(": ", 1)[-1]
    elif message is None and exit_code is not None and exit_code < 0:
        message = f"the engine process was killed by signal {-exit_code} while loading; is there enough memory?"
    elif message is None:
        message = f"the engine process ended while loading, with exit code {exit_code}"
    return Failed(message, exit_code, registry.log_path(log_id), tail)


def _client(connection: Connection, health: Mapping[str, Any]) -> EngineClient:
    return EngineClient(connection.url, connection.token, name=connection.name, model=health.get("model"))


def _extend_idle_timeout(outcome: Reused, seconds: float | None) -> None:
    current = outcome.info.health.get("idle_timeout_s")
    if current is not None and (seconds is None or seconds > current):
        outcome.client.set_idle_timeout(seconds)


# Stop


def _stop(registry: Registry, connection: Connection) -> Stopped:
    """Ask, then insist, then kill."""
    ways: tuple[tuple[str, Callable[[], None]], ...] = (
        ("shutdown", lambda: _ask_to_end(connection)),
        ("terminated", lambda: send_signal(connection, signal.SIGTERM)),
        ("killed", lambda: send_signal(connection, signal.SIGKILL)),
    )
    for how, act in ways:
        act()
        if _ends_within(connection, _GRACE):
            registry.forget(connection)
            exit_code(connection.id)  # a child of ours is no zombie either then
            return Stopped(connection.name, connection.pid or 0, how)
    raise VllmNbError(f"engine {connection.name!r} (pid {connection.pid}) does not end, not even when killed")


def _ask_to_end(connection: Connection) -> None:
    with EngineClient(connection.url, connection.token, name=connection.name) as client, suppress(VllmNbError):
        client.shutdown()  # an error: it hangs, or is ending already


def _ends_within(connection: Connection, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while process_runs(connection):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True
