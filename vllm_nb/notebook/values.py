"""A cell's value: kept in `_`, `Out` and the variable asked for, and not shown a second time.

When a streamed cell ends, its answer stands in the cell already, and IPython would now show the value below it once
more. So for the rest of that cell the display hook is told that this very object needs no display.
"""

from typing import Any

from IPython.core.formatters import IPythonDisplayFormatter
from IPython.core.interactiveshell import InteractiveShell

from vllm_nb.notebook.display import in_terminal

_COMPLETION = ("vllm_nb.client.completion", "Completion")


class CellValues:
    """Keeps the values of one shell's cells."""

    def __init__(self, shell: InteractiveShell):
        self._shell = shell
        self._shown: Any = None

    @property
    def _formatter(self) -> IPythonDisplayFormatter:
        assert self._shell.display_formatter is not None  # every shell has one once it is made
        return self._shell.display_formatter.ipython_display_formatter

    def install(self) -> None:
        """By name: the class need not be imported yet."""
        self._formatter.for_type_by_name(*_COMPLETION, self._display)
        self._shell.events.register("post_run_cell", self._forget)

    def uninstall(self) -> None:
        self._formatter.pop(".".join(_COMPLETION), None)
        self._shell.events.unregister("post_run_cell", self._forget)

    def was_shown(self, value: Any) -> None:
        """Until the cell ends, `value` is not displayed by IPython."""
        self._shown = value

    def keep(self, value: Any) -> None:
        """Into `_` and `Out`, for a cell that returns nothing: it ends in ';', or was interrupted."""
        self._shell.displayhook.update_user_ns(value)

    def assign(self, name: str, value: Any) -> None:
        self._shell.push({name: value})

    def _display(self, value: Any) -> None:
        if value is not self._shown:
            raise NotImplementedError  # IPython's sign for: go on to the usual representations
        if in_terminal(self._shell):  # there the prompt "Out[1]:" has been printed
            print(value.summary)

    def _forget(self, *_: Any) -> None:
        self._shown = None
