"""What the magics of one shell share: its engines and conversations, the values of its cells, and where they show."""

from functools import cached_property
from typing import TYPE_CHECKING

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from vllm_nb.notebook.display import NotebookView, SilentView, TerminalView, View, in_terminal
from vllm_nb.notebook.settings import Settings
from vllm_nb.notebook.values import CellValues

if TYPE_CHECKING:  # the client is imported by the first cell that needs it, not by %load_ext
    from vllm_nb.client.conversation import Conversation
    from vllm_nb.inspection.follow import Recorder
    from vllm_nb.notebook.engines import Engine, Engines


class Session:
    """One notebook."""

    def __init__(self, shell: InteractiveShell, settings: Settings):
        self.shell = shell
        self.settings = settings
        self.values = CellValues(shell)
        self.conversations: dict[str, Conversation] = {}
        self.recorder: Recorder | None = None  # what %vllm record has begun

    @staticmethod
    def of(shell: InteractiveShell) -> "Session | None":
        """The one of a shell; None where the extension isn't loaded."""
        magics = shell.magics_manager.registry.get("VllmMagics")
        return getattr(magics, "_session", None)

    @cached_property
    def engines(self) -> "Engines":
        from vllm_nb.notebook.engines import Engines

        return Engines(self.settings)

    def engine_in_use(self, *, silent: bool = False) -> "Engine":
        """For what looks into an engine. Raises UsageError where none runs: a new one would have nothing to show."""
        engine = self.engines.in_use(self.view(silent=silent))
        if engine is None:
            raise UsageError("no engine is running; %vllm start, or a %%vllm cell, starts one")
        return engine

    def conversation(self, name: str) -> "Conversation":
        """That one, or a new one."""
        from vllm_nb.client.conversation import Conversation

        return self.conversations.setdefault(name, Conversation(title=name))

    def view(self, *, silent: bool = False) -> View:
        """Where a cell shows what goes on. silent: and leaves nothing of it."""
        view: View = TerminalView() if in_terminal(self.shell) else NotebookView()
        return SilentView(view) if silent else view
