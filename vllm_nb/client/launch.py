"""Starting an engine process: what is to run, and the process itself."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vllm_nb.client.registry import Registry
from vllm_nb.client.runtime_dir import cannot_be_written
from vllm_nb.config import EngineConfig
from vllm_nb.connection import Connection, ConnectionFileError, load, save
from vllm_nb.errors import NO_MODEL, VllmNbError

_RELATIVE = re.compile(r"\.\.?/")
BIND_TIMEOUT = 60.0  # seconds until a new process must have bound its port; a cold disk is slow
_POLL = 0.005

_ENDED_KEPT = 10  # processes that have ended: somebody may be about to ask for their exit codes

# The engine processes this process has started, by connection id, as a pid may come again. A thread each waits for
# them, or they would stay as zombies.
_children: dict[str, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine is to be. model: a name, a hub id, or an absolute path. key: equal for specs that one engine can
    serve, which are the same settings of the same files by the same installation."""

    model: str
    config: dict[str, Any]
    key: str

    @classmethod
    def of(cls, model: str | os.PathLike[str], settings: dict[str, Any]) -> "EngineSpec":
        """Raises ValueError for an unknown or wrong setting, and for no model at all."""
        text = os.fspath(model)
        if not text.strip():
            raise ValueError(NO_MODEL)
        path = Path(text).expanduser()
        if path.exists() or path.is_absolute() or _RELATIVE.match(text) or (path.suffix == ".gguf" and ":" not in text):
            text = str(path.absolute())  # the engine has another working directory
        config = EngineConfig.from_dict(settings).to_dict()
        parts = [text, _fingerprint(Path(text)), config, version("vllm-nb"), sys.prefix]
        return cls(text, config, hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest())

    @property
    def short_name(self) -> str:
        """ "org/Name:file.gguf" -> "Name", "/models/x.gguf" -> "x"."""
        name = re.sub(r"\.gguf$", "", self.model.rstrip("/").rsplit("/", 1)[-1].split(":")[0])
        return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "engine"


def _fingerprint(path: Path) -> list[Any]:
    """Changes when a local model is written anew: an engine still holds the old weights."""
    if not path.is_absolute() or not path.exists():
        return []
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [[file.name, (status := file.stat()).st_size, status.st_mtime_ns] for file in files if file.is_file()]


class LaunchError(VllmNbError):
    """The process ended, or was killed, before it had bound its port."""

    def __init__(self, message: str, exit_code: int, log_id: str):
        super().__init__(message)
        self.exit_code, self.log_id = exit_code, log_id


def launch(
    registry: Registry, spec: EngineSpec, name: str, idle_timeout: float | None, with_kernel: bool
) -> Connection:
    """Start a process and wait until it has bound its port, which takes a tenth of a second; the model loads after.

    with_kernel: it ends when this process does. The caller holds the start lock. Raises LaunchError,
    VllmNbError where the runtime folder cannot be written.
    """
    connection = Connection.new(
        name=name, key=spec.key, model=spec.model, config=spec.config, idle_timeout=idle_timeout
    )
    if with_kernel:
        import psutil

        connection.owner_pid, connection.owner_create_time = os.getpid(), psutil.Process().create_time()
    path = registry.path(connection.id)
    process = None
    try:
        save(path, connection)
        process = _spawn(path, connection.id, registry.log_path(connection.id))
        return _wait_for_port(path, process, connection.id)
    except BaseException as error:
        if process is not None:
            process.kill()
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_be_written(registry.folder, error) from None
        raise


def _spawn(path: Path, connection_id: str, log_path: Path) -> subprocess.Popen[bytes]:
    """In a session of its own: an interrupt or restart of the notebook's kernel signals that kernel's group only."""
    log_file = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vllm_nb.server", str(path)],  # -P: no modules of the working directory
            stdin=subprocess.DEVNULL,
            stdout=log_file,  # a real file: a notebook's sys.stdout is none
            stderr=log_file,
            start_new_session=True,
            cwd="/",  # holds no folder that the user may want to unmount
        )
    finally:
        os.close(log_file)
    ended = [known for known, child in list(_children.items()) if child.returncode is not None]
    for known in ended[:-_ENDED_KEPT]:
        _children.pop(known, None)
    _children[connection_id] = process
    threading.Thread(target=process.wait, name="vllm-nb-reaper", daemon=True).start()
    return process


def _wait_for_port(path: Path, process: subprocess.Popen[bytes], log_id: str) -> Connection:
    deadline = time.monotonic() + BIND_TIMEOUT
    while process.poll() is None:
        try:
            connection = load(path)
        except ConnectionFileError:  # gone: the process ends and takes its file with it
            connection = None
        if connection is not None and connection.port is not None:
            return connection
        if time.monotonic() > deadline:
            process.kill()
            message = (
                f"the engine process did not open its port within {BIND_TIMEOUT:g} s and was killed; start it again "
                "when this machine and its disk are less busy"
            )
            raise LaunchError(message, process.wait(), log_id)
        time.sleep(_POLL)
    code = process.returncode
    raise LaunchError(f"the engine process ended at once, with exit code {code}", code, log_id)


def exit_code(connection_id: str) -> int | None:
    """Of a process that this one has started, and that has ended lately; negative for a signal. None for any other."""
    process = _children.get(connection_id)
    if process is None:
        return None
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)  # the reaper is about to have it
    return process.returncode
