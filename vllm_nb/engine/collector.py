"""Python's garbage collector, kept out of loading."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """For what makes very many objects that all stay, such as a vocabulary or torch's modules: the collector would walk
    through all of them again and again. Afterwards they count as old, as if it had.

    A collector that is off, or has objects frozen by somebody else, stays as it is.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            gc.freeze()
            gc.unfreeze()  # into the oldest generation, where `freeze` alone would keep garbage for ever
        gc.enable()
