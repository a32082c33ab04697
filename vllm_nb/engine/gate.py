"""The step debugger's gate before each step: open, or closed with a number of steps to be let through."""

from concurrent.futures import Future


class _Wanted:
    """A caller that waits until `count` steps are made."""

    def __init__(self, count: int):
        self.count = count
        self.made = 0
        self.done: Future[int] = Future()


class StepGate:
    """Used on the engine thread alone."""

    def __init__(self) -> None:
        self.paused = False
        self._wanted: list[_Wanted] = []  # first come, first served

    @property
    def is_open(self) -> bool:
        """Whether the next step may be made."""
        return not self.paused or bool(self._wanted)

    def let_through(self, count: int) -> "Future[int]":
        """Open for `count` steps. The future's result: how many were made."""
        self._wanted.append(_Wanted(count))
        return self._wanted[-1].done

    def passed(self) -> None:
        """A step was made."""
        if self._wanted:
            self._wanted[0].made += 1

    def settle(self, has_work: bool) -> None:
        """Answer callers whose steps are made; all of them when there is nothing to compute."""
        while self._wanted and (not has_work or self._wanted[0].made >= self._wanted[0].count):
            wanted = self._wanted.pop(0)
            wanted.done.set_result(wanted.made)
