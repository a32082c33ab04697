"""Progress of downloads that someone else does: what shows is how a folder grows."""

import contextlib
import math
import stat
from collections.abc import Callable
from pathlib import Path

from vllm_nb import progress

_INTERVAL = 0.2  # seconds between looks


def report_growth(
    folder: Path, phase: str, total: float | None, finished: Callable[[float], bool], before: int = 0
) -> None:
    """Report the bytes that are added to `folder` until `finished(timeout in seconds)` says so. before: its size when
    the download began."""
    reported = 0.0
    most = math.inf if total is None else total  # what is downloaded has a little bookkeeping with it
    with progress.task(phase, total=total, unit="B") as advance:
        done = False
        while not done:
            done = finished(_INTERVAL)
            grown = min(size_of(folder) - before, most)
            if grown > reported:
                advance(grown - reported)
                reported = grown


def size_of(folder: Path) -> int:
    """Bytes in the files below `folder`."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # moved or removed meanwhile
            status = path.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total
