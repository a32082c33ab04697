"""How a cell ends when it can't go on: a few lines that say what happened and what to do, not a stack of ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from IPython.core.error import UsageError

from vllm_nb.errors import GenerationError, QueueFullError, RequestError, VllmNbError


class EngineFailure(VllmNbError):
    """The engine couldn't do what a cell asked for. IPython shows the message in place of a traceback."""

    def __init__(self, cause: str, *, fix: str = "", log_path: Path | None = None, log_tail: str = ""):
        self.cause, self.fix, self.log_path, self.log_tail = cause, fix, log_path, log_tail
        super().__init__(cause)

    def _render_traceback_(self) -> list[str]:
        lines = [f"{type(self).__name__}: {self.cause}"]
        lines += [f"    {line}" for line in self.log_tail.splitlines()]
        lines += [self.fix] if self.fix else []
        lines += [f"Log: {self.log_path}"] if self.log_path else []
        return lines


class Interrupted(KeyboardInterrupt):
    """A cell that was stopped. It ends in an error, so that "Run All" doesn't go on; one line of it is shown."""

    def _render_traceback_(self) -> list[str]:
        return [f"KeyboardInterrupt: {self}"]


@contextmanager
def told_to_the_user(log_path: Path | None = None) -> Iterator[None]:
    """Errors of the client, as what a notebook shows: UsageError for the user's own, EngineFailure for the engine's."""
    try:
        yield
    except QueueFullError as error:
        fix = f"Run the cell again in {error.retry_after:g} s; %vllm ps shows what the engines are doing."
        raise EngineFailure(str(error), fix=fix, log_path=log_path) from error
    except GenerationError as error:
        fix = "The engine goes on: change the request or run the cell again."
        raise EngineFailure(str(error), fix=fix, log_path=log_path) from error
    except (RequestError, ValueError) as error:
        raise UsageError(str(error)) from None
    except VllmNbError as error:  # EngineDeadError among them: the message says how to go on
        raise EngineFailure(str(error), log_path=log_path) from error
