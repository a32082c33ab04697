"""The connection file: how an engine process and its clients find each other.

A client writes it (who is to run, with which token), starts the process with its path, and the process adds where it
listens. Mode 0600, replaced whole, so a reader sees either the old or the new file and never a half of one.
"""

import json
import os
import secrets
import stat
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vllm_nb.errors import VllmNbError


class ConnectionFileError(VllmNbError):
    """A connection file that cannot be used: missing, cut off, not ours, or readable by others."""


@dataclass(kw_only=True)
class Connection:
    """One engine process. `pid`, `create_time` and `port` are None until the process has bound its port."""

    id: str
    name: str
    key: str  # digest of the configuration: equal keys mean that one engine can stand for the other
    model: str
    config: dict[str, Any] = field(default_factory=dict)  # EngineConfig.to_dict()
    token: str = field(repr=False)
    idle_timeout: float | None = None  # seconds; None: never stops by itself
    owner_pid: int | None = None  # the process whose end is also this one's
    owner_create_time: float | None = None
    created: float = 0.0  # seconds since the epoch
    pid: int | None = None
    create_time: float | None = None  # of the process: tells it from another one that got the same pid later
    port: int | None = None

    @classmethod
    def new(cls, **values: Any) -> "Connection":
        """A connection with a fresh id and token."""
        return cls(id=secrets.token_hex(4), token=secrets.token_urlsafe(32), created=time.time(), **values)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def save(path: Path, connection: Connection) -> None:
    """Replace the file at `path`, readable by its owner alone."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(os.open(draft, flags, 0o600), "w", encoding="utf-8") as file:
            json.dump(asdict(connection), file)
        os.replace(draft, path)
    except OSError:  # a full disk
        draft.unlink(missing_ok=True)
        raise


def load(path: Path) -> Connection:
    """The connection in the file at `path`. Raises ConnectionFileError."""
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), encoding="utf-8") as file:
            _check_owner(path, os.fstat(file.fileno()))
            values = json.load(file)
    except FileNotFoundError:
        raise ConnectionFileError(f"there is no connection file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: not JSON, not UTF-8
        raise ConnectionFileError(f"connection file {path} cannot be read: {error}") from None
    return _checked(path, values)


def _check_owner(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ConnectionFileError(f"connection file {path} must be a plain file of yours with mode 0600")


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "name", "key", "model", "token"), (str,)),
    "config": (dict,),
    "idle_timeout": (int, float, type(None)),
    "created": (int, float),
    **dict.fromkeys(("pid", "owner_pid", "port"), (int, type(None))),
    **dict.fromkeys(("create_time", "owner_create_time"), (int, float, type(None))),
}


def _checked(path: Path, values: Any) -> Connection:
    if not isinstance(values, dict):
        raise ConnectionFileError(f"connection file {path} does not hold an object")
    known = {f.name: values[f.name] for f in fields(Connection) if f.name in values}  # other versions may say more
    wrong = sorted(name for name, value in known.items() if not isinstance(value, _TYPES[name]))
    if wrong:
        raise ConnectionFileError(f"connection file {path} has a wrong value in {wrong[0]}")
    try:
        return Connection(**known)
    except TypeError as error:  # a field without a default is missing
        raise ConnectionFileError(f"connection file {path} is incomplete: {error}") from None


def is_running(pid: int | None, create_time: float | None) -> bool:
    """Whether that very process is there: not a zombie, and not another one with the same pid."""
    import psutil

    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - (create_time or 0)) <= _CLOCK_TOLERANCE
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


_CLOCK_TOLERANCE = 1.0  # seconds; create times are derived from the boot time, which clock corrections move
