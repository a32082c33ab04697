"""The flags of `%%vllm`."""

import keyword
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from IPython.core.error import UsageError

from vllm_nb.notebook.parser import Parser, split
from vllm_nb.sampling import SamplingParams


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
