"""The folder that holds connection files, logs and the start lock: entered by its owner alone."""

import fcntl
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_nb.errors import VllmNbError

ENVIRONMENT_NAME = "VLLM_NB_RUNTIME_DIR"


def runtime_dir() -> Path:
    """The user's folder, made if needed. Raises VllmNbError where others could enter it or put theirs in its place."""
    return secure_folder(_configured() or _default())


def _configured() -> Path | None:
    folder = os.environ.get(ENVIRONMENT_NAME)
    return Path(folder).expanduser().absolute() if folder else None


def _default() -> Path:
    import platformdirs

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it announces a fallback in /tmp, which secure_folder checks
            return Path(platformdirs.user_runtime_dir("vllm_nb"))
    except PermissionError as error:  # the folder above it belongs to another user
        raise VllmNbError(f"no safe runtime folder: {error}; or set {ENVIRONMENT_NAME} to a folder of yours") from None


def secure_folder(folder: Path) -> Path:
    """Make `folder` with mode 0700, or check that it is so already."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_parent(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()  # not stat: a link may lead into someone else's folder
    except OSError as error:
        raise VllmNbError(
            f"runtime folder {folder} cannot be made: {error.strerror}; set {ENVIRONMENT_NAME} to a folder of yours"
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise VllmNbError(f"runtime folder {folder} is not a folder: remove it, or set {ENVIRONMENT_NAME}")
    if status.st_uid != os.getuid():
        raise VllmNbError(
            f"runtime folder {folder} belongs to another user (uid {status.st_uid}): set {ENVIRONMENT_NAME} to a "
            "folder of yours"
        )
    if status.st_mode & 0o077:
        raise VllmNbError(
            f"runtime folder {folder} is open to other users (mode {stat.S_IMODE(status.st_mode):04o}): run "
            f"`chmod 700 {folder}`, or set {ENVIRONMENT_NAME} to another folder"
        )
    return folder


def cannot_be_written(folder: Path, error: OSError) -> VllmNbError:
    """A full disk, a file system that is read-only."""
    return VllmNbError(
        f"runtime folder {folder} cannot be written: {error.strerror}; set {ENVIRONMENT_NAME} to a folder elsewhere"
    )


def _check_parent(parent: Path) -> None:
    """Whoever may rename entries of the parent could swap the folder under us."""
    status = parent.stat()
    anyone_renames = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    stranger_renames = status.st_mode & stat.S_IWOTH and status.st_uid not in (0, os.getuid(), _OVERFLOW_UID)
    if anyone_renames or stranger_renames:
        raise VllmNbError(
            f"any user can replace folders in {parent} (mode {stat.S_IMODE(status.st_mode):04o}): set "
            f"{ENVIRONMENT_NAME} to a folder elsewhere"
        )


_OVERFLOW_UID = 65534  # root's folders as seen from inside a user namespace (rootless containers)


@contextmanager
def start_lock(folder: Path) -> Iterator[None]:
    """Held while an engine is looked up or started, so that two starts of one configuration make one engine.

    The operating system drops it with the process that holds it, so there is no stale lock.
    """
    try:
        lock = os.open(folder / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise cannot_be_written(folder, error) from None
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
