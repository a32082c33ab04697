"""Ctrl+C while a call waits."""

import signal


def heed() -> None:
    """Let an interrupt end a read or a wait at once, as Python has it. A library that puts a handler of its own before
    Python's, as polars does when it is imported, makes the system take up such calls again until they are done."""
    if hasattr(signal, "siginterrupt"):  # not on Windows
        signal.siginterrupt(signal.SIGINT, True)
