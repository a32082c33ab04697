"""Which engine processes there are: reads the connection files, believes none of them, deletes those of the dead."""

import http.client
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_nb.connection import Connection, ConnectionFileError, is_running, load
from vllm_nb.errors import VllmNbError

PROBE_TIMEOUT = 2.0  # seconds for an answer to /health from a process on this machine
_LOGS_KEPT = 10  # of engines that are gone, to see why


class EngineGone(VllmNbError):
    """Nothing, or something else, answers where the engine was."""


class EngineSilent(VllmNbError):
    """The process is there and accepts connections, but does not answer in time."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """An engine process as it was when asked.

    status: "loading", "ready", "failed", or "silent" (the process runs and does not answer). health: its /health.
    """

    id: str
    name: str
    model: str
    status: str
    pid: int
    url: str
    log_path: Path
    health: Mapping[str, Any]


def probe(connection: Connection, timeout: float) -> dict[str, Any]:
    """The engine's /health. Raises EngineGone or EngineSilent. (By http.client: httpx takes longer to import than
    reusing an engine may take.)"""
    http_connection = http.client.HTTPConnection("127.0.0.1", connection.port, timeout=timeout)
    try:
        http_connection.request("GET", "/health", headers={"Authorization": f"Bearer {connection.token}"})
        payload = json.loads(http_connection.getresponse().read())
    except TimeoutError:
        raise EngineSilent(f"engine {connection.name!r} does not answer within {timeout:g} s") from None
    except (OSError, http.client.HTTPException, ValueError):
        payload = None
    finally:
        http_connection.close()
    if not isinstance(payload, dict) or payload.get("id") != connection.id:
        raise EngineGone(f"engine {connection.name!r} is not running any more")
    return payload


def process_runs(connection: Connection) -> bool:
    """Whether the very process of the file is there."""
    return is_running(connection.pid, connection.create_time)


def send_signal(connection: Connection, number: int) -> None:
    """Signal the engine's process, if it still is that process."""
    import psutil

    if process_runs(connection):
        with suppress(psutil.NoSuchProcess):
            psutil.Process(connection.pid).send_signal(number)


class Registry:
    """The connection files of one runtime folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, connection_id: str) -> Path:
        return self.folder / f"{connection_id}.json"

    def log_path(self, connection_id: str) -> Path:
        return self.folder / f"{connection_id}.log"

    def connections(self, *, drop_unbound: bool = False) -> list[Connection]:
        """Those whose process runs, oldest first; files that are corrupt or of a dead process are deleted.

        drop_unbound: also delete files whose process never came up; only right for the holder of the start lock, as
        every file is in that state for a moment.
        """
        found = []
        for path in self.folder.glob("*.json"):
            try:
                connection = load(path)
            except ConnectionFileError:
                path.unlink(missing_ok=True)
                continue
            if connection.port is None or connection.pid is None:
                if drop_unbound:
                    path.unlink(missing_ok=True)
            elif process_runs(connection):
                found.append(connection)
            else:
                self.forget(connection)
        return sorted(found, key=lambda connection: connection.created)

    def running(self, *, drop_unbound: bool = False) -> list[tuple[Connection, ProcessInfo]]:
        """Those that also prove over HTTP who they are; a process that runs and does not answer counts as silent."""
        found = []
        for connection in self.connections(drop_unbound=drop_unbound):
            try:
                found.append((connection, self.info(connection, probe(connection, PROBE_TIMEOUT))))
            except EngineSilent:
                found.append((connection, self.info(connection, {"status": "silent"})))
            except EngineGone:
                self.forget(connection)
        return found

    def info(self, connection: Connection, health: Mapping[str, Any]) -> ProcessInfo:
        return ProcessInfo(
            id=connection.id,
            name=connection.name,
            model=connection.model,
            status=health["status"],
            pid=connection.pid or 0,
            url=connection.url,
            log_path=self.log_path(connection.id),
            health=health,
        )

    def forget(self, connection: Connection) -> None:
        """Delete the file of an engine that is gone, and old logs."""
        self.path(connection.id).unlink(missing_ok=True)
        orphans = [log for log in self.folder.glob("*.log") if not log.with_suffix(".json").exists()]
        for log in sorted(orphans, key=_modified)[:-_LOGS_KEPT]:
            log.unlink(missing_ok=True)

    def log_tail(self, connection_id: str, lines: int = 15) -> str:
        """The end of the engine's log; empty where there is none."""
        try:
            text = self.log_path(connection_id).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.rstrip().splitlines()[-lines:])


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # deleted since by another client
        return 0.0
