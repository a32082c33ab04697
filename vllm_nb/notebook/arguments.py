"""The flags of `%%vllm`."""

import argparse
import keyword
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from IPython.core.error import UsageError

from vllm_nb.notebook.names import image_of, schema_of, tools_of
from vllm_nb.notebook.panels import PANELS
from vllm_nb.notebook.parser import Parser, split
from vllm_nb.sampling import SamplingParams

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


@dataclass(frozen=True)
class CellOptions:
    """What `%%vllm` was asked for. params: fields of SamplingParams and ChatOptions that were given, and `schema`."""

    params: dict[str, Any]
    system: str | None
    chat: str | None
    images: tuple[Any, ...]
    tools: tuple[Callable[..., Any], ...]
    confirm: bool
    raw: bool
    stream: bool
    panels: tuple[str, ...]
    engine: str | None
    output: str | None
    over: str | None  # an expression that names a table
    into: str | None
    concurrency: int
    resume: bool

    @property
    def shaped(self) -> bool:
        """Whether the answer has a value."""
        return "schema" in self.params


PANEL_LOGPROBS = 10  # alternatives that `--panel tokens` asks for


def _ids(text: str) -> list[int]:
    return [int(word) for word in text.replace(" ", ",").split(",") if word]


def _bias(text: str) -> dict[int, float]:
    pairs = (word.partition(":") for word in text.replace(" ", ",").split(",") if word)
    return {int(token): float(value) for token, _, value in pairs}


_ids.__name__, _bias.__name__ = "list of token ids", "ID:BIAS"  # as argparse calls them in its messages

_SAMPLING: tuple[tuple[str, Callable[[str], Any], str, str], ...] = (
    ("--temperature", float, "X", "0 always takes the likeliest token; higher is more varied"),
    ("--top-p", float, "X", "keep the likeliest tokens that hold this much probability"),
    ("--top-k", int, "N", "keep this many of the likeliest tokens"),
    ("--min-p", float, "X", "drop tokens below this share of the likeliest one's probability"),
    ("--max-tokens", int, "N", "stop after this many tokens"),
    ("--min-tokens", int, "N", "don't stop before this many"),
    ("--seed", int, "N", "the same seed gives the same text"),
    ("-n", int, "N", "independent answers"),
    ("--repetition-penalty", float, "X", "above 1: less of what was said"),
    ("--frequency-penalty", float, "X", "subtracted for each earlier use of a token in the answer"),
    ("--presence-penalty", float, "X", "subtracted once for a token that the answer has used"),
    ("--logit-bias", _bias, "ID:X,...", "added to the logits of these tokens"),
    ("--stop-token-ids", _ids, "ID,...", "end at one of these tokens"),
    ("--priority", int, "N", "whose is lower runs earlier"),
    ("--logprobs", int, "N", "alternatives to keep for each token"),
    ("--prompt-logprobs", int, "N", "the same for the tokens of the prompt"),
)


@cache  # making it takes longer than all else that a cell does before it asks
def cell_parser() -> Parser:
    parser = Parser(
        "%%vllm",
        "Send the cell to a model and stream the answer. The cell's value is a Completion.",
        "{{ expr }} in the prompt or the flags is replaced from the notebook's names; other braces are left alone.\n"
        "A ';' at the end of the cell keeps the answer but doesn't show it (';;' ends a prompt in ';'). What is not\n"
        "given is as %config VllmMagics or [tool.vllm_nb] in pyproject.toml has it, else as the model's makers\n"
        "recommend. With no engine running, the default model is started first.",
        stray="the prompt goes on the lines below, and a text with spaces in quotes",
    )
    _add_sampling(parser.add_argument_group("sampling"))
    _add_content(parser)
    _add_form(parser)
    panel = "a live picture of the engine above the answer; may be repeated"
    parser.add_argument("--panel", action="append", choices=sorted(PANELS), help=panel)
    _add_table(parser)
    engine = parser.add_argument("--engine", metavar="NAME", help="which engine, as %%vllm ps names it")
    parser.completes(engine, "engines")
    parser.add_argument("--no-stream", action="store_true", default=None, help="show the answer when it is whole")
    parser.add_argument(
        "-o", "--output", metavar="VARIABLE", help="store the Completion under this name, or with --schema the value"
    )
    return parser


def _add_sampling(group: Any) -> None:
    for flag, kind, metavar, text in _SAMPLING:
        group.add_argument(flag, type=kind, metavar=metavar, help=text)
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help='end before this text; may be repeated; {{ "\\n" }} is a newline',
    )
    group.add_argument(
        "--ignore-eos", action="store_true", default=None, help="run to --max-tokens whatever the model says"
    )


def _add_content(parser: Parser) -> None:
    group = parser.add_argument_group("what is asked")
    group.add_argument("--system", metavar="TEXT", help="system message")
    chat = group.add_argument("--chat", metavar="NAME", help="go on with this conversation; %%vllm chat has them all")
    parser.completes(chat, "conversations")
    image = group.add_argument(
        "--image", action="append", metavar="IMAGE", help="a path, a URL or a picture's name; may be repeated"
    )
    parser.completes(image, "names")
    group.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")


def _add_form(parser: Parser) -> None:
    group = parser.add_argument_group("what comes back")
    schema = group.add_argument(
        "--schema", metavar="TYPE", help="a pydantic model, dataclass or type, a JSON schema or a file with one"
    )
    parser.completes(schema, "names")
    group.add_argument("--choice", metavar="A,B,...", help="one of these texts")
    group.add_argument("--regex", metavar="PATTERN", help="a text that this matches as a whole")
    group.add_argument("--grammar", metavar="LARK", help="a text of this grammar")
    tools = group.add_argument("--tools", metavar="F,G,...", help="Python functions that the model may call")
    parser.completes(tools, "names")
    group.add_argument("--yes", action="store_true", default=None, help="don't ask before a tool is called")
    group.add_argument("--thinking", choices=("on", "off"), help="whether a model that can reasons first")
    group.add_argument("--reasoning-effort", choices=EFFORTS, help="how much it reasons")


def _add_table(parser: Parser) -> None:
    group = parser.add_argument_group("a whole table")
    over = group.add_argument(
        "--over",
        metavar="TABLE",
        help="ask about each row of a DataFrame, Series or list; {{ COLUMN }} or {{ value }} is the row's",
    )
    parser.completes(over, "names")
    group.add_argument("--into", metavar="COLUMN", help="add the answers to it as this column, and COLUMN_error")
    group.add_argument("--resume", action="store_true", help="leave rows alone that have an answer in that column")
    group.add_argument("--concurrency", type=int, default=64, metavar="N", help="rows in flight (default 64)")


def parse_cell(
    line: str, namespace: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> CellOptions | None:
    """The options of a `%%vllm` line; None when help was printed. defaults: options where a flag is not given.

    Raises UsageError.
    """
    options = cell_parser().parse(split(line, namespace))
    if options is None:
        return None
    _check(options)
    for name, value in (defaults or {}).items():
        if getattr(options, name) is None and not (options.raw and name == "system"):
            setattr(options, name, value)
    params = {name: value for name, value in vars(options).items() if name in _SAMPLING_FIELDS and value is not None}
    if "tokens" in (options.panel or ()):
        params.setdefault("logprobs", PANEL_LOGPROBS)
    try:
        SamplingParams(**params)
        params |= _form(options, namespace)
    except (ValueError, TypeError) as error:
        raise UsageError(f"%%vllm: {error}") from None
    return CellOptions(
        params=params,
        system=options.system,
        chat=options.chat,
        images=tuple(image_of(image, namespace) for image in options.image or ()),
        tools=tuple(tools_of(options.tools, namespace)) if options.tools else (),
        confirm=not options.yes,
        raw=options.raw,
        stream=not options.no_stream,
        panels=tuple(options.panel or ()),
        engine=options.engine,
        output=options.output,
        over=options.over,
        into=options.into,
        concurrency=options.concurrency,
        resume=options.resume,
    )


_SAMPLING_FIELDS = frozenset(SamplingParams.__dataclass_fields__)


def _check(options: argparse.Namespace) -> None:
    """Flags that don't go together, and names that are none."""
    name = options.output
    if name is not None and (not name.isidentifier() or keyword.iskeyword(name)):
        raise UsageError(f"%%vllm: -o takes a variable name, not {name!r}")
    of_chats = ("system", "chat", "image", "tools", "thinking", "reasoning_effort")
    given = [each for each in of_chats if getattr(options, each)]
    if options.raw and given:
        flag = f"--{given[0].replace('_', '-')}"
        raise UsageError(f"%%vllm: {flag} needs the chat template, which --raw leaves out; drop one of them")
    _check_table(options)
    forms = [f"--{each}" for each in ("schema", "choice", "regex", "grammar") if getattr(options, each) is not None]
    if len(forms) > 1:
        raise UsageError(f"%%vllm: an answer has one form; drop {' or '.join(forms)}")
    if (options.n or 1) > 1 and (options.tools or options.chat):
        flag = "--tools" if options.tools else "--chat"
        raise UsageError(f"%%vllm: {flag} goes on with one answer, so -n can't be {options.n}")


def _check_table(options: argparse.Namespace) -> None:
    if options.over is None:
        for flag in ("into", "resume"):
            if getattr(options, flag):
                raise UsageError(f"%%vllm: --{flag} goes with --over TABLE")
        return
    for flag in ("chat", "image", "tools", "raw", "logprobs", "n"):
        if getattr(options, flag):
            dash = "-" if flag == "n" else "--"
            raise UsageError(f"%%vllm: --over asks each row for one answer; drop {dash}{flag}")
    if options.resume and options.into is None:
        raise UsageError("%%vllm: --resume looks at the column of --into: name it")
    if options.concurrency < 1:
        raise UsageError(f"%%vllm: --concurrency must be at least 1, not {options.concurrency}")


def _form(options: argparse.Namespace, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """What the answer is to be, and how the model thinks, as parameters of the client."""
    form: dict[str, Any] = {}
    if any(each is not None for each in (options.schema, options.choice, options.regex, options.grammar)):
        form["schema"] = _shape(options, namespace)
    if options.thinking:
        form["enable_thinking"] = options.thinking == "on"
    if options.reasoning_effort:
        form["reasoning_effort"] = options.reasoning_effort
    return form


def _shape(options: argparse.Namespace, namespace: Mapping[str, Any]) -> Any:
    from vllm_nb.client.schema import Shape

    if options.schema is not None:
        return Shape.of(schema_of(options.schema, namespace))
    if options.choice is not None:
        return Shape.choice(*(text.strip() for text in options.choice.split(",")))
    return Shape.regex(options.regex) if options.regex is not None else Shape.grammar(options.grammar)
