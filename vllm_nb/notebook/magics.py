"""`%vllm` and `%%vllm`. Each does what a line of Python can: vllm_nb.start, list_engines, stop, client.stream."""

from collections import ChainMap
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class, needs_local_scope, no_var_expand

from vllm_nb.notebook import arguments
from vllm_nb.notebook.arguments import CellOptions
from vllm_nb.notebook.display import NotebookView, SilentView, Table, TerminalView, View, in_terminal
from vllm_nb.notebook.interpolate import did_you_mean, interpolate
from vllm_nb.notebook.values import CellValues

if TYPE_CHECKING:  # the client is imported by the first cell that needs it, not by %load_ext
    from vllm_nb.client.completion import Completion
    from vllm_nb.client.stream import ChatStream
    from vllm_nb.notebook.engines import Engine, Engines

Namespace = Mapping[str, Any]


@magics_class
class VllmMagics(Magics):
    """The magics of one shell, and which engine it talks to."""

    shell: InteractiveShell

    def __init__(self, shell: InteractiveShell):
        super().__init__(shell)
        self._values = CellValues(shell)

    @cached_property
    def _engines(self) -> "Engines":
        from vllm_nb.notebook.engines import Engines

        return Engines()

    @classmethod
    def load(cls, shell: InteractiveShell) -> None:
        """Register the magics; prints nothing."""
        magics = cls(shell)
        shell.register_magics(magics)
        magics._values.install()

    @staticmethod
    def unload(shell: InteractiveShell) -> None:
        """Take the magics away again."""
        magics = shell.magics_manager.registry.pop(VllmMagics.__name__)
        magics._values.uninstall()
        for kind in ("line", "cell"):
            del shell.magics_manager.magics[kind]["vllm"]

    @no_var_expand
    @needs_local_scope
    @line_cell_magic
    def vllm(self, line: str, cell: str | None = None, local_ns: Namespace | None = None) -> Any:
        namespace = ChainMap(dict(local_ns or {}), self.shell.user_ns)
        if cell is not None:
            return self._cell(line, cell, namespace)
        words = arguments.split(line, namespace)
        return self._subcommand(words[0])(words[1:]) if words else self._status()

    vllm.__doc__ = f"{arguments.overview()}\n{arguments.cell_parser().format_help()}"

    # %%vllm

    def _cell(self, line: str, cell: str, namespace: Namespace) -> "Completion | None":
        options = arguments.parse_cell(line, namespace)
        if options is None:
            return None
        prompt, silent = _prompt(cell, namespace)
        view = self._view(silent)
        engine = self._engines.ready(options.engine, view)
        completion = self._answer(engine, options, prompt, view)
        if silent:
            self._values.keep(completion)
            return None
        self._values.was_shown(completion)
        return completion

    def _answer(self, engine: "Engine", options: CellOptions, prompt: str, view: View) -> "Completion":
        """Show the answer as it comes and keep it, also what there is of one that was cut off."""
        from vllm_nb.notebook.answer import Answer
        from vllm_nb.notebook.failures import Interrupted, told_to_the_user

        with told_to_the_user(engine.info.log_path):
            stream = _stream(engine, options, prompt)
            choices = options.sampling.get("n", 1)
            answer = Answer(engine.client, stream, view, choices=choices, show_text=options.stream)
            try:
                answer.show()
            except KeyboardInterrupt:
                self._cut_off(answer.completion, options.output, view)
                raise Interrupted(_stopped(answer.completion, options.output)) from None
            except BaseException:
                if answer.completion.token_ids:
                    self._cut_off(answer.completion, options.output, view)
                else:
                    view.clear()
                raise
        self._finish(answer.completion, options.output, view)
        return answer.completion

    def _finish(self, completion: "Completion", output: str | None, view: View) -> None:
        view.finish(completion)
        if output is not None:
            self._values.assign(output, completion)

    def _cut_off(self, completion: "Completion", output: str | None, view: View) -> None:
        """The cell ends in an error, so IPython keeps no value of it: what there is is kept here."""
        self._finish(completion, output, view)
        self._values.keep(completion)

    def _view(self, silent: bool = False) -> View:
        view: View = TerminalView() if in_terminal(self.shell) else NotebookView()
        return SilentView(view) if silent else view

    # %vllm

    def _subcommand(self, name: str) -> Callable[[list[str]], Any]:
        commands = {
            "start": self._start,
            "ps": self._ps,
            "stop": self._stop,
            "use": self._use,
            "logs": self._logs,
            "-h": self._help,
            "--help": self._help,
        }
        if name not in commands:
            raise UsageError(f"%vllm: unknown subcommand {name!r}{did_you_mean(name, commands)}; %vllm lists them")
        return commands[name]

    def _start(self, words: list[str]) -> None:
        from vllm_nb.notebook.engines import outcome_table

        options = arguments.start_parser().parse(words)
        if options is not None:
            view = self._view()
            view.finish(outcome_table(self._engines.start(options.model, view, **arguments.start_settings(options))))

    def _ps(self, words: list[str]) -> Table | None:
        return self._engines.table() if arguments.ps_parser().parse(words) else None

    def _stop(self, words: list[str]) -> Table | None:
        options = arguments.stop_parser().parse(words)
        return self._engines.stop(options.name, all=options.all) if options else None

    def _use(self, words: list[str]) -> Table | None:
        options = arguments.use_parser().parse(words)
        if options is None:
            return None
        self._engines.use(options.name)
        return self._engines.table()

    def _logs(self, words: list[str]) -> None:
        options = arguments.logs_parser().parse(words)
        if options is None:
            return
        path = self._engines.log_of(options.name).log_path
        if options.lines < 1:
            raise UsageError(f"%vllm logs: --lines takes a number of at least 1, not {options.lines}")
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        print("\n".join([*lines[-options.lines :], f"({path})"]))

    def _status(self) -> None:
        print(arguments.overview())
        print(self._engines.table().text)

    def _help(self, words: list[str]) -> None:
        print(VllmMagics.vllm.__doc__)


def _prompt(cell: str, namespace: Namespace) -> tuple[str, bool]:
    """The cell with its expressions replaced, and whether it ends in the ';' that keeps the answer from view."""
    text = cell.rstrip()
    silent = text.endswith(";")
    prompt = interpolate(text.removesuffix(";") if silent else cell.removesuffix("\n"), namespace)
    if not prompt.strip():
        raise UsageError("%%vllm: the prompt is empty; write it on the lines below")
    return prompt, silent


def _stream(engine: "Engine", options: CellOptions, prompt: str) -> "ChatStream":
    if options.raw:
        stream = engine.client.stream_text(prompt, **options.sampling)
        stream.completion.verbatim = True
        return stream
    system = [{"role": "system", "content": options.system}] if options.system else []
    return engine.client.stream([*system, {"role": "user", "content": prompt}], **options.sampling)


def _stopped(completion: "Completion", output: str | None) -> str:
    where = f"_ and {output}" if output else "_"
    tokens = sum(len(choice.token_ids) for choice in completion.choices)
    return f"stopped after {tokens:,} tokens; the text so far is in {where}"
