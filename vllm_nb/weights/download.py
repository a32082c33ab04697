"""Progress of downloads that someone else does: what shows is how a folder grows."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from vllm_nb import progress

_INTERVAL = 0.2  # seconds between looks


def report_growth(folder: Path, phase: str, total: float | None, finished: Callable[[float], bool]) -> None:
    """Report the bytes that are added to `folder` until `finished(timeout in seconds)` says so."""
    seen = _size(folder)
    with progress.task(phase, total=total, unit="B") as advance:
        done = False
        while not done:
            done = finished(_INTERVAL)
            now = _size(folder)
            if now > seen:
                advance(now - seen)
                seen = now


def _size(folder: Path) -> int:
    """Bytes below `folder`."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # moved or removed meanwhile
            total += 0 if path.is_symlink() else path.stat().st_size
    return total
