"""How a process that serves an engine ends."""

import logging
import os
import sys
from typing import NoReturn


def end_process(status: int) -> NoReturn:
    """Leave at once: a load that was given up still runs on a daemon thread, deep in C++, and would hold up or crash an
    orderly end of the interpreter."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
