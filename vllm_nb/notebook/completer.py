"""What Tab offers on a line of `%vllm` and in a cell of `%%vllm`: subcommands, flags, and names of what there is.

A matcher of IPython's completer API (v2). It looks at the line up to the cursor and never raises: while a line is being
written it may be anything.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from vllm_nb.errors import VllmNbError
from vllm_nb.notebook.arguments import cell_parser
from vllm_nb.notebook.commands import COMMANDS, Command, Group, command_parser
from vllm_nb.notebook.panels import PANELS
from vllm_nb.notebook.parser import Parser
from vllm_nb.notebook.session import Session

_LINE = re.compile(r"^\s*(%%?)vllm(?=\s|$)(.*)$")
_NAME = re.compile(r"[\w.]*$")


class VllmCompleter:
    """Completions of one shell."""

    def __init__(self, session: Session):
        self._session = session

        @context_matcher(identifier="vllm_nb", priority=200)
        def matcher(context: CompletionContext) -> SimpleMatcherResult:
            return self._match(context)

        self.matcher = matcher

    def install(self) -> None:
        completer = self._session.shell.Completer
        if completer is not None:
            completer.custom_matchers.append(self.matcher)

    def uninstall(self) -> None:
        completer = self._session.shell.Completer
        if completer is not None and self.matcher in completer.custom_matchers:
            completer.custom_matchers.remove(self.matcher)

    def _match(self, context: CompletionContext) -> SimpleMatcherResult:
        return self.complete(context.text_until_cursor, in_cell=context.full_text.lstrip().startswith("%%vllm"))

    def complete(self, line: str, *, in_cell: bool) -> SimpleMatcherResult:
        """line: up to the cursor. in_cell: it belongs to a cell of `%%vllm`."""
        found = _LINE.match(line)
        opened = line.rfind("{{")
        if opened > line.rfind("}}") and (found or in_cell):
            fragment = _NAME.search(line[opened + 2 :])
            return self._result(fragment[0] if fragment else "", self._names())
        if found is None:
            return SimpleMatcherResult(completions=[])
        *words, fragment_word = _words(found[2])
        if found[1] == "%%":
            return self._result(fragment_word, _of_parser(self, cell_parser(), words))
        return self._result(fragment_word, self._of_line(words, COMMANDS, "%vllm"))

    def _of_line(self, words: list[str], commands: Mapping[str, Command], magic: str) -> Iterable[str]:
        if not words:
            return [*commands, "-h"]
        command = commands.get(words[0])
        if command is None:
            return ()
        found = command.load()
        if isinstance(found, Group):
            return self._of_line(words[1:], found.commands, f"{magic} {words[0]}")
        return _of_parser(self, command_parser(f"{magic} {words[0]}", found), words[1:])

    def _result(self, fragment: str, offered: Iterable[str]) -> SimpleMatcherResult:
        """Those that begin with the fragment. They replace it, and nobody else's matches are shown beside them."""
        matching = [SimpleCompletion(text, type="vllm") for text in offered if text.startswith(fragment)]
        return SimpleMatcherResult(completions=matching, matched_fragment=fragment, suppress=bool(matching))

    # Names of what there is

    def kind(self, kind: str) -> list[str]:
        """kind: as Parser.completes has it, or "panels"."""
        sources: dict[str, Callable[[], list[str]]] = {
            "engines": self._engines,
            "models": _models,
            "conversations": lambda: [*self._session.conversations],
            "names": self._names,
            "panels": lambda: [*PANELS],
        }
        try:
            return sources[kind]()
        except (VllmNbError, OSError, ValueError):  # no runtime folder, an engine that has just gone
            return []

    def _engines(self) -> list[str]:
        engines = self._session.engines
        return [*(info.name for info in engines.running()), *engines.attached]

    def _names(self) -> list[str]:
        return [name for name in self._session.shell.user_ns if not name.startswith("_")]


def _models() -> list[str]:
    from vllm_nb.catalogue import known_models

    return [model.name for model in known_models(Path.cwd())]


def _words(rest: str) -> list[str]:
    """The words up to the cursor; the last one, perhaps empty, is being written."""
    return re.split(r"\s+", rest.lstrip()) if rest.strip() else [""]


def _of_parser(completer: VllmCompleter, parser: Parser, words: list[str]) -> Iterable[str]:
    """After a flag that takes a value: what it takes; else the flags, and what stands in an argument's place."""
    if words and (taken := parser.value_of(words[-1])) is not None:
        choices, kind = taken
        return choices or (completer.kind(kind) if kind else ())
    given = {word for word in words if word.startswith("-")}
    flags = [flag for flag in parser.flags if flag not in given]
    kind = parser.next_argument(words)
    return [*(completer.kind(kind) if kind else ()), *flags]
