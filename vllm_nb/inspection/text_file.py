"""Files that people name to keep something in."""

from pathlib import Path

from vllm_nb.errors import VllmNbError


def write_text(path: Path, text: str) -> Path:
    """Write a file anew. Raises VllmNbError where that cannot be."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        reason = error.strerror if path.parent.is_dir() else f"there is no folder {path.parent}"
        raise VllmNbError(f"cannot write {path}: {reason}") from None
    return path
