"""What came of starting or stopping an engine process."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from vllm_nb.client.http import EngineClient
from vllm_nb.client.registry import ProcessInfo
from vllm_nb.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class Started:
    """A new engine is ready."""

    info: ProcessInfo
    client: EngineClient
    seconds: float
    ok: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Reused:
    """An engine of the same configuration was there already."""

    info: ProcessInfo
    client: EngineClient
    seconds: float
    ok: ClassVar[bool] = True


class _WithoutClient:
    """Asked for its client all the same, an outcome tells why it has none."""

    __slots__ = ()
    message: str

    @property
    def client(self) -> EngineClient:
        """Raises ModelLoadError, with the message."""
        raise ModelLoadError(self.message)


@dataclass(frozen=True, slots=True)
class Failed(_WithoutClient):
    """The engine could not start: `message` says why. exit_code: None when another process had started it."""

    message: str
    exit_code: int | None
    log_path: Path
    log_tail: str = field(repr=False)
    ok: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class TimedOut(_WithoutClient):
    """Not ready in time; the engine goes on loading, and another start waits for it again."""

    message: str
    info: ProcessInfo
    seconds: float
    log_tail: str = field(repr=False)
    ok: ClassVar[bool] = False


Outcome = Started | Reused | Failed | TimedOut


@dataclass(frozen=True, slots=True)
class Stopped:
    """An engine that has ended. how: "shutdown" (it was asked), "terminated" (SIGTERM) or "killed" (SIGKILL)."""

    name: str
    pid: int
    how: str
