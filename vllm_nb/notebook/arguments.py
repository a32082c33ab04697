"""The flags of `%%vllm` and of each `%vllm` subcommand, and how a magic's line becomes words."""

import argparse
import keyword
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser
from IPython.utils.process import arg_split  # type: ignore[attr-defined]

from vllm_nb.config import BACKENDS, DEVICES, DTYPES, EngineConfig
from vllm_nb.notebook.interpolate import did_you_mean, expressions, interpolate
from vllm_nb.sampling import SamplingParams

DEFAULT_MODEL = "smollm2"


class Parser(MagicArgumentParser):
    """argparse for a magic: exact flags, mistakes as UsageError with the nearest valid name."""

    def __init__(self, prog: str, description: str, epilog: str | None = None, stray: str | None = None):
        plain = argparse.RawDescriptionHelpFormatter  # IPython's default is written for reStructuredText
        super().__init__(prog, description=description, epilog=epilog, formatter_class=plain)
        self._help = f"{prog.replace('%%', '%')} -h"  # a cell magic without a cell is refused by IPython
        self._stray = stray or f"{self._help} shows what it takes"  # said of a word that belongs nowhere
        self.allow_abbrev = False  # an abbreviation that works today is ambiguous after the next new flag
        self.add_argument("-h", "--help", action="store_true", help="show this and do nothing")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")

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
        flags = [flag for action in self._actions for flag in action.option_strings]
        flag = word.partition("=")[0]
        return f"unknown flag {flag}{did_you_mean(flag, flags)}; {self._help} shows them all"


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


@dataclass(frozen=True)
class CellOptions:
    """What `%%vllm` was asked for. sampling: the fields of SamplingParams that were given."""

    sampling: dict[str, Any]
    system: str | None
    raw: bool
    stream: bool
    engine: str | None
    output: str | None


_SAMPLING = (
    ("--temperature", float, "0 always takes the likeliest token; higher is more varied"),
    ("--top-p", float, "keep the likeliest tokens that hold this much probability"),
    ("--top-k", int, "keep this many of the likeliest tokens"),
    ("--min-p", float, "drop tokens below this share of the likeliest one's probability"),
    ("--max-tokens", int, "stop after this many tokens"),
    ("--min-tokens", int, "don't stop before this many"),
    ("--seed", int, "the same seed gives the same text"),
    ("-n", int, "independent answers"),
    ("--repetition-penalty", float, "above 1: less of what was said"),
    ("--frequency-penalty", float, "subtracted for each earlier use of a token in the answer"),
    ("--presence-penalty", float, "subtracted once for a token that the answer has used"),
    ("--logprobs", int, "alternatives to keep for each token"),
)


def cell_parser() -> Parser:
    parser = Parser(
        "%%vllm",
        "Send the cell to a model and stream the answer. The cell's value is a Completion.",
        "{{ expr }} in the prompt or the flags is replaced from the notebook's names; other braces are left alone.\n"
        "A ';' at the end of the cell keeps the answer but doesn't show it (';;' ends a prompt in ';'). What is not\n"
        "given is as the model's makers recommend. With no engine running, the default model is started first.",
        stray="the prompt goes on the lines below, and a text with spaces in quotes",
    )
    sampling = parser.add_argument_group("sampling")
    for flag, kind, text in _SAMPLING:
        sampling.add_argument(flag, type=kind, metavar="X" if kind is float else "N", help=text)
    sampling.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help='end before this text; may be repeated; {{ "\\n" }} is a newline',
    )
    sampling.add_argument(
        "--ignore-eos", action="store_true", default=None, help="run to --max-tokens whatever the model says"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    parser.add_argument("--no-stream", action="store_true", help="show the answer when it is whole")
    parser.add_argument("--engine", metavar="NAME", help="which engine, as %%vllm ps names it")
    parser.add_argument("-o", "--output", metavar="VARIABLE", help="store the Completion under this name as well")
    return parser


def parse_cell(line: str, namespace: Mapping[str, Any]) -> CellOptions | None:
    """The options of a `%%vllm` line; None when help was printed. Raises UsageError."""
    options = cell_parser().parse(split(line, namespace))
    if options is None:
        return None
    name = options.output
    if name is not None and (not name.isidentifier() or keyword.iskeyword(name)):
        raise UsageError(f"%%vllm: -o takes a variable name, not {options.output!r}")
    if options.raw and options.system is not None:
        raise UsageError("%%vllm: --system needs the chat template, which --raw leaves out; drop one of them")
    given = {name: value for name, value in vars(options).items() if name in _SAMPLING_FIELDS and value is not None}
    try:
        SamplingParams(**given)
    except ValueError as error:
        raise UsageError(f"%%vllm: {error}") from None
    return CellOptions(given, options.system, options.raw, not options.no_stream, options.engine, options.output)


_SAMPLING_FIELDS = frozenset(SamplingParams.__dataclass_fields__)

_CONFIG = (
    ("--device", str, DEVICES, "where it runs"),
    ("--backend", str, BACKENDS, "whose kernels"),
    ("--dtype", str, DTYPES, "of activations and KV cache"),
    ("--max-model-len", int, None, "prompt and answer together, in tokens"),
    ("--max-num-seqs", int, None, "requests that run at once"),
    ("--kv-fraction", float, None, "most of the free memory that the KV cache may take"),
    ("--threads", int, None, "CPU threads"),
)


def start_parser() -> Parser:
    parser = Parser(
        "%vllm start", "Start an engine, or reuse the one that already runs with this model and these settings."
    )
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        help=f"'{DEFAULT_MODEL}' (the default), a hub id, a folder of safetensors, or a GGUF file",
    )
    parser.add_argument("--name", help="what to call it; the default is the model's name")
    settings = parser.add_argument_group("settings of the engine")
    for flag, kind, choices, text in _CONFIG:
        metavar = None if choices else "X" if kind is float else "N"
        settings.add_argument(flag, type=kind, choices=choices, metavar=metavar, help=text)
    settings.add_argument(
        "--no-prefix-cache", dest="prefix_cache", action="store_false", default=None, help="share nothing"
    )
    parser.add_argument(
        "--idle-timeout", type=float, metavar="SECONDS", help="end after so long without requests; 0: never"
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="how long to wait until it is ready")
    return parser


def start_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What was given of vllm_nb.start's options and EngineConfig's fields. Raises UsageError for a wrong value."""
    given = {
        name: value for name, value in vars(options).items() if name not in ("model", "help") and value is not None
    }
    try:
        EngineConfig.from_dict({name: value for name, value in given.items() if name not in _PROCESS})
    except ValueError as error:
        raise UsageError(f"%vllm start: {error}") from None
    if "idle_timeout" in given:
        given["idle_timeout"] = given["idle_timeout"] or None
    return given


_PROCESS = ("name", "timeout", "idle_timeout")


def stop_parser() -> Parser:
    parser = Parser("%vllm stop", "End an engine and free its memory: the one in use, a named one, or all.")
    parser.add_argument("name", nargs="?", help="as %%vllm ps names it")
    parser.add_argument("--all", action="store_true", help="every engine of yours on this machine")
    return parser


def use_parser() -> Parser:
    parser = Parser("%vllm use", "Choose the engine that %%vllm talks to in this notebook.")
    parser.add_argument("name", help="as %%vllm ps names it")
    return parser


def ps_parser() -> Parser:
    return Parser("%vllm ps", "The engines that run on this machine.")


def logs_parser() -> Parser:
    parser = Parser("%vllm logs", "The end of an engine's log.")
    parser.add_argument("name", nargs="?", help="as %%vllm ps names it; the default is the engine in use")
    parser.add_argument("--lines", type=int, default=40, metavar="N", help="how many")
    return parser


def overview() -> str:
    """All of `%vllm` on one page."""
    return """\
%vllm start [MODEL]    start an engine, or reuse the one that runs
%vllm ps               the engines that run
%vllm use NAME         which of them %%vllm talks to in this notebook
%vllm stop [NAME]      end an engine
%vllm logs [NAME]      the end of an engine's log

%%vllm [flags]         send the cell to a model and stream the answer; %vllm -h lists the flags

Each takes -h. {{ expr }} is replaced by its value from the notebook.
"""
