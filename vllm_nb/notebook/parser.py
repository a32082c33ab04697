"""How a magic's line becomes words, and words become options: argparse, with mistakes told the way a notebook does."""

import argparse
from collections.abc import Mapping
from typing import Any, NoReturn

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser
from IPython.utils.process import arg_split  # type: ignore[attr-defined]

from vllm_nb.config import NOT_YET
from vllm_nb.notebook.interpolate import did_you_mean, expressions, interpolate


class Parser(MagicArgumentParser):
    """argparse for a magic: exact flags, mistakes as UsageError with the nearest valid name."""

    def __init__(self, prog: str, description: str, epilog: str | None = None, stray: str | None = None):
        plain = argparse.RawDescriptionHelpFormatter  # IPython's default is written for reStructuredText
        super().__init__(prog, description=description, epilog=epilog, formatter_class=plain)
        self._help = f"{prog.replace('%%', '%')} -h"  # a cell magic without a cell is refused by IPython
        self._stray = stray or f"{self._help} shows what it takes"  # said of a word that belongs nowhere
        self.allow_abbrev = False  # an abbreviation that works today is ambiguous after the next new flag
        self.add_argument("-h", "--help", action="store_true", help="show this and do nothing")
        self._kinds: dict[str, str] = {}

    def completes(self, argument: argparse.Action, kind: str) -> None:
        """What completion offers for an argument: "engines", "models", "conversations" or "names"."""
        self._kinds[argument.dest] = kind

    @property
    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]

    def value_of(self, flag: str) -> tuple[list[str], str | None] | None:
        """Of a flag that takes a value: its choices, and the kind that `completes` was told; None for other words."""
        for action in self._actions:
            if flag in action.option_strings and action.nargs != 0:
                return [str(choice) for choice in action.choices or ()], self._kinds.get(action.dest)
        return None

    def next_argument(self, words: list[str]) -> str | None:
        """The kind of the argument that comes after these words."""
        plain = 0
        for before, word in zip(["", *words], words, strict=False):
            plain += not word.startswith("-") and self.value_of(before) is None
        arguments = [action for action in self._actions if not action.option_strings]
        return self._kinds.get(arguments[plain].dest) if plain < len(arguments) else None

    def error(self, message: str) -> NoReturn:
        more = (
            f"; {self._help} shows what it takes" if message.startswith("the following arguments are required") else ""
        )
        raise UsageError(f"{self.prog}: {message}{more}")

    def parse(self, words: list[str]) -> argparse.Namespace | None:
        """The options; None when help was asked for, and printed."""
        if "-h" in words or "--help" in words:
            print(self.format_help())
            return None
        options, unknown = self.parse_known_args(words)
        if unknown:
            self.error(self._unknown(unknown[0]))
        return options

    def _unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"unexpected {word!r}; {self._stray}"
        flag = word.partition("=")[0]
        if (missing := NOT_YET.get(flag.removeprefix("--").replace("-", "_"))) is not None:
            return f"{flag}: {missing[1]}"
        return f"unknown flag {flag}{did_you_mean(flag, self.flags)}; {self._help} shows them all"


def split(line: str, namespace: Mapping[str, Any]) -> list[str]:
    """The words of a magic's line, quotes taken off and `{{ expr }}` replaced; a value stays one word."""
    found = expressions(line)
    for number, expression in enumerate(found):
        line = line.replace(expression, _placeholder(number), 1)
    try:
        words = arg_split(line, posix=True)
    except ValueError as error:  # "No closing quotation"
        raise UsageError(
            f"{str(error).lower()} in: {line}; quote a text that holds a quote, or use {{{{ }}}}"
        ) from None
    for number, expression in enumerate(found):
        value = interpolate(expression, namespace)
        words = [word.replace(_placeholder(number), value) for word in words]
    return words


def _placeholder(number: int) -> str:
    return f"\ue000{number}\ue001"  # private use characters: nothing a prompt holds, nothing that a shell splits
