"""What the magics of one shell share: its engines, the values of its cells, and where they show what goes on."""

from functools import cached_property
from typing import TYPE_CHECKING

from IPython.core.interactiveshell import InteractiveShell

from vllm_nb.notebook.display import NotebookView, SilentView, TerminalView, View, in_terminal
from vllm_nb.notebook.values import CellValues

if TYPE_CHECKING:  # the client is imported by the first cell that needs it, not by %load_ext
    from vllm_nb.notebook.engines import Engines


class Session:
    """One notebook."""

    def __init__(self, shell: InteractiveShell):
        self.shell = shell
        self.values = CellValues(shell)

    @cached_property
    def engines(self) -> "Engines":
        from vllm_nb.notebook.engines import Engines

        return Engines()

    def view(self, *, silent: bool = False) -> View:
        """Where a cell shows what goes on. silent: and leaves nothing of it."""
        view: View = TerminalView() if in_terminal(self.shell) else NotebookView()
        return SilentView(view) if silent else view
