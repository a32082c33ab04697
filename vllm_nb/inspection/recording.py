"""Recordings: one file that replays anywhere, without an engine.

A gzip file of JSON lines. The first says what it is; each other one is a batch of events as the engine streams them,
the first of which has a snapshot (docs/events.md).
"""

import gzip
import json
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from vllm_nb.errors import VllmNbError
from vllm_nb.events import VERSION, Batch, EventFormatError, check_version, dump, parse
from vllm_nb.inspection.timeline import Timeline

FORMAT = "vllm_nb recording"
_FAST = 3  # gzip level: a fifth of the size, at little cost to whoever records
FLUSH_SECONDS = 2.0  # each flush costs a little of the compression
_LONGEST_HEADER = 4096  # bytes; the first line of another file may be all of it


class RecordingError(VllmNbError):
    """A recording that cannot be read or written: missing, damaged, not a recording, or of a newer version."""


class _NoRecording(RecordingError):
    """Something else than a recording."""


class _CutOff(RecordingError):
    """A recording without its end."""


def check_writable(path: str | Path, *, overwrite: bool = False) -> None:
    """Raises RecordingError for a file that exists, unless it is a recording and may be overwritten."""
    path = Path(path).expanduser()
    try:
        with gzip.open(path, "rb") as file:
            _check_header(path, file.readline(_LONGEST_HEADER))
    except FileNotFoundError:
        return  # whether it can be created is seen when it is
    except (EOFError, gzip.BadGzipFile, zlib.error, _NoRecording):
        raise RecordingError(f"{path} exists and is no recording of vllm_nb: give another name") from None
    except OSError as error:
        raise RecordingError(f"{path} cannot be written: {error.strerror}") from None
    except EventFormatError:
        pass  # of another version, but a recording
    if not overwrite:
        raise RecordingError(
            f"{path} is a recording already: give another name, or replace it with overwrite=True "
            "(`%vllm record --overwrite FILE`)"
        )


class RecordingFile:
    """Writes batches to a new file, and on to the disk every few seconds, so that little is lost with the process.
    Raises RecordingError when it cannot be created, and as check_writable does."""

    def __init__(
        self, path: str | Path, *, overwrite: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self.path = Path(path).expanduser()
        self.events = 0
        check_writable(self.path, overwrite=overwrite)
        try:
            mode: Literal["wb", "xb"] = "wb" if overwrite else "xb"  # somebody else may have created it just now
            self._file = gzip.open(self.path, mode, _FAST)  # noqa: SIM115 closed by close()
        except OSError as error:
            raise RecordingError(f"{self.path} cannot be written: {error.strerror}") from None
        self._write(json.dumps({"format": FORMAT, "version": VERSION, "created": round(time.time())}))
        self._flush()

    def write(self, batch: Batch) -> None:
        """To be called with empty batches too, from time to time: what came before them is flushed then."""
        if batch.events or batch.snapshot is not None:
            self._write(dump(batch))
            self.events += len(batch.events)
        if batch.snapshot is not None or (self._unflushed and self._clock() - self._flushed >= FLUSH_SECONDS):
            self._flush()

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")
        self._unflushed = True

    def _flush(self) -> None:
        self._file.flush(zlib.Z_SYNC_FLUSH)
        self._flushed, self._unflushed = self._clock(), False

    def close(self) -> None:
        """Complete the file. Safe to call twice."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_batches(path: str | Path) -> Iterator[Batch]:
    """The batches of a recording. Raises RecordingError saying what is wrong with the file."""
    path = Path(path).expanduser()
    try:
        with gzip.open(path, "rb") as file:
            _check_header(path, file.readline())
            for line in file:
                yield parse(line)
    except FileNotFoundError:
        raise RecordingError(f"there is no recording {path}") from None
    except EOFError:
        raise _CutOff(f"{path} is cut off: the recording was not stopped, or not copied completely") from None
    except gzip.BadGzipFile:
        raise RecordingError(f"{path} is no recording of vllm_nb: it is not a gzip file, or damaged") from None
    except (OSError, zlib.error) as error:
        raise RecordingError(f"{path} cannot be read: {error}") from None
    except EventFormatError as error:
        raise RecordingError(f"{path}: {error}") from None


def _check_header(path: Path, line: bytes) -> None:
    try:
        header: Any = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _NoRecording(f"{path} is no recording of vllm_nb: `%vllm record FILE` makes one")
    check_version(header)


def replay(path: str | Path) -> Timeline:
    """A recording as a timeline, to be looked at step by step or through panels: replay(FILE).at(12), .panel("kv").

    Of one that is cut off, as by a kernel that was restarted, what there is, with a warning. Raises RecordingError.
    """
    batches = read_batches(path)
    timeline: Timeline | None = None
    try:
        timeline = Timeline(next(batches))
        for batch in batches:
            timeline.extend(batch)
    except _CutOff as cut_off:
        if timeline is None:
            raise
        warnings.warn(f"{cut_off}; this is what there is of it", stacklevel=2)
    except StopIteration:
        raise RecordingError(f"{path} holds no events: the recording was stopped before it had begun") from None
    except EventFormatError as error:
        raise RecordingError(f"{path}: {error}") from None
    return timeline
