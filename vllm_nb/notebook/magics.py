"""`%vllm` and `%%vllm`. Each does what a line of Python can: vllm_nb.start, list_engines, stop, client.stream."""

from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class, needs_local_scope, no_var_expand

from vllm_nb.notebook import commands
from vllm_nb.notebook.arguments import cell_parser
from vllm_nb.notebook.cell import run_cell
from vllm_nb.notebook.completer import VllmCompleter
from vllm_nb.notebook.parser import split
from vllm_nb.notebook.session import Session
from vllm_nb.notebook.settings import Settings

if TYPE_CHECKING:
    from vllm_nb.client.http import EngineClient


def overview() -> str:
    """All of `%vllm` on one page."""
    return f"""\
{commands.overview()}
%%vllm [flags]         send the cell to a model and stream the answer; %vllm -h lists the flags

Each takes -h. {{{{ expr }}}} is replaced by its value from the notebook.
"""


@magics_class
class VllmMagics(Magics, Settings):
    """Settings of %vllm and %%vllm; a flag goes before what is set here. None: not set."""

    shell: InteractiveShell

    def __init__(self, shell: InteractiveShell):
        super().__init__(shell)
        self.load_project(Path.cwd())
        self._session = Session(shell, self)
        self._completer = VllmCompleter(self._session)

    @classmethod
    def load(cls, shell: InteractiveShell) -> None:
        """Register the magics; prints nothing."""
        magics = cls(shell)
        shell.register_magics(magics)
        magics._session.values.install()
        magics._completer.install()

    @staticmethod
    def unload(shell: InteractiveShell) -> None:
        """Take the magics away again."""
        magics = shell.magics_manager.registry.pop(VllmMagics.__name__)
        magics._session.values.uninstall()
        magics._completer.uninstall()
        shell.configurables.remove(magics)
        for kind in ("line", "cell"):
            del shell.magics_manager.magics[kind]["vllm"]

    @no_var_expand
    @needs_local_scope
    @line_cell_magic
    def vllm(self, line: str, cell: str | None = None, local_ns: Mapping[str, Any] | None = None) -> Any:
        namespace = ChainMap(dict(local_ns or {}), self.shell.user_ns)
        if cell is not None:
            return run_cell(self._session, line, cell, namespace)
        words = split(line, namespace)
        if not words:
            return self._status()
        if words[0] in ("-h", "--help"):
            return print(VllmMagics.vllm.__doc__)
        return commands.run(self._session, words)

    vllm.__doc__ = f"{overview()}\n{cell_parser().format_help()}"

    def client(self) -> "EngineClient":
        """Of the engine that cells talk to, which is found or started as they would."""
        return self._session.engines.ready(None, self._session.view()).client

    def _status(self) -> None:
        print(overview())
        from vllm_nb.notebook.tables import engine_table

        print(engine_table(self._session.engines).text)
