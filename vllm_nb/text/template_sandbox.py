"""Chat templates come inside model files, from anyone, and are programs: here they reach little and pay for all.

Reach: plain data, the filters and methods listed below, and Jinja's own sandbox on top. Pay: every loop round, call,
printed text and value made is charged by its size to the rendering's budget, which watches the clock, too. Jinja's
sandbox has no such limits, so the syntax tree is rewritten before it is compiled: bodies of loops and macros begin
with a charge, and `~` and literals of lists and dictionaries go through a check. Sizes are counted as if printed:
thirty lines of {% set x = [x, x] %} make a small object whose text fills the memory, and which takes for ever to
compare. What one operation can then cost is bounded by the size of what it is given.
"""

import json
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS, do_indent, do_join, do_replace
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SOURCE = 256 * 1024  # characters; the longest templates in use have some 20,000
MAX_WORK = 64 * 2**20  # characters printed or made, and the rest in characters' worth:
_ROUND, _CALL, _ITEM = 8, 256, 16  # a loop's round, a call or filter, an item of a list or dictionary
MAX_VALUE = 16 * 2**20  # one value, likewise
MAX_SECONDS = 5.0
_MAX_INT_BITS = 4096
_MAX_JSON_INDENT = 16

_FILTERS = (
    "abs capitalize count d default dictsort first float groupby int items last length lower map max min reject "
    "rejectattr reverse round safe select selectattr sort string sum title trim truncate unique upper"
)
_STR_METHODS = (
    "capitalize casefold count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace istitle "
    "isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split "
    "splitlines startswith strip swapcase title upper"
)
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STR_METHODS.split()),
    list: frozenset(("count", "copy", "index")),
    tuple: frozenset(("count", "index")),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    int: frozenset(),
    float: frozenset(),
}
# Also the views of dictionaries, whose printed form holds all that the dictionary does.
_VIEWS: tuple[Any, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS: tuple[Any, ...] = (list, tuple, dict, *_VIEWS)


class _Budget:
    """What one rendering may still spend."""

    def __init__(self) -> None:
        self._left = MAX_WORK
        self._deadline = time.monotonic() + MAX_SECONDS

    def spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise SecurityError("it does or prints more than a chat template may")
        if time.monotonic() > self._deadline:
            raise SecurityError(f"it takes longer than {MAX_SECONDS:g} seconds")


_budget: ContextVar[_Budget] = ContextVar("budget")


def _spend(amount: int) -> None:
    _budget.get().spend(amount)


def _admit(value: Any) -> Any:
    """`value`, unless its text would be too long."""
    pending, size = [value], 0
    while pending:
        item = pending.pop()
        size += _ITEM + (len(item) if isinstance(item, str) else 0)
        if isinstance(item, dict):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, _CONTAINERS):
            pending += item
        if size + len(pending) * _ITEM > MAX_VALUE:
            raise SecurityError("it makes a value larger than a chat template may")
    return value


def _charged(value: Any) -> Any:
    if isinstance(value, str):
        _spend(len(value))
    elif isinstance(value, _CONTAINERS):
        _spend(len(value) * _ITEM)
        _admit(value)
    return value


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """Within a fresh budget. Raises whatever the template does, and SecurityError beyond the limits."""
    token = _budget.set(_Budget())
    try:
        return template.render(variables)
    finally:
        _budget.reset(token)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates. White space, extensions and helpers are those of transformers' apply_chat_template."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
            optimized=False,  # nothing is evaluated while compiling, where there is no budget
            finalize=_print,
        )
        guarded = {name: _guard(FILTERS[name]) for name in _FILTERS.split()}
        own = {"list": _list, "join": _join, "replace": _replace, "indent": _indent, "tojson": _tojson}
        self.filters = guarded | own | {_ADMIT: _charged, _CONCAT: _concat, _TICK: _spend}
        allowed = {name: self.globals[name] for name in ("range", "cycler", "joiner")}
        self.globals = allowed | {
            "dict": lambda **items: items,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE:
            raise jinja2.TemplateSyntaxError(f"it has {len(source):,} characters; at most {MAX_SOURCE:,} are read", 1)
        return _Rewriter().visit(super()._parse(source, name, filename))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        known = next((methods for kind, methods in _METHODS.items() if isinstance(obj, kind)), None)
        return super().is_safe_attribute(obj, attr, value) and (known is None or attr in known)

    def wrap_str_format(self, value: Any) -> None:
        """str.format can pad without bound; left unwrapped, is_safe_attribute refuses it."""

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            _admit(value)
        args = _priced(__obj, args)
        return _charged(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sequences = [value for value in (left, right) if isinstance(value, str | list | tuple)]
        if not sequences:
            _check_power_or_product(operator, left, right)
        elif operator == "+":
            _spend(sum(len(v) if isinstance(v, str) else len(v) * _ITEM for v in sequences))
        elif operator == "*":
            _spend(len(sequences[0]) * _ITEM * max([0, *(v for v in (left, right) if isinstance(v, int))]))
        else:
            raise SecurityError(f"it uses {operator} on text, which is not allowed")
        return _admit(super().call_binop(context, operator, left, right))


def _check_power_or_product(operator: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > _MAX_INT_BITS:
            raise SecurityError("it computes a number larger than a chat template may")


def _priced(function: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Charges a call, in advance for the methods of texts that make more than they are given. Returns the arguments."""
    _spend(_CALL)
    text, name = getattr(function, "__self__", None), getattr(function, "__name__", None)
    if isinstance(text, str) and args and isinstance(args[0], str):
        if name == "replace" and len(args) > 1:
            _spend(text.count(args[0]) * len(args[1]))
        elif name in ("split", "rsplit"):
            _spend(text.count(args[0]) * _ITEM)
    elif isinstance(text, str) and name in ("split", "rsplit", "splitlines"):
        _spend(len(text) * _ITEM // 2)
    elif isinstance(text, str) and name == "join" and args:
        items = list(args[0])
        _spend(len(items) * (_ITEM + len(text)))
        return (items, *args[1:])
    return args


class _Namespace(Namespace):
    def __repr__(self) -> str:
        return "<Namespace>"  # its values may hold other namespaces many times over


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


@jinja2.pass_context
def _print(context: Context, value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    _spend(len(text))
    return text


# Filters

_ADMIT, _CONCAT, _TICK = "#admit", "#concat", "#tick"  # no template can write these names


def _guard(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # keeps the marks of filters that want the environment or the context
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _spend(_CALL)
        return _charged(function(*args, **kwargs))

    return guarded


def _list(value: Any) -> list[Any]:
    if isinstance(value, str):
        _spend(len(value) * _ITEM)
    return _charged(list(value))


def _concat(parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    _spend(sum(map(len, texts)))
    return "".join(texts)


@jinja2.pass_eval_context
def _join(context: Any, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    items = list(value)
    _spend(len(items) * (_ITEM + len(str(d))))
    return _charged(do_join(context, items, d, attribute))


@jinja2.pass_eval_context
def _replace(context: Any, s: str, old: str, new: str, count: int | None = None) -> str:
    _spend(str(s).count(str(old)) * len(str(new)))
    return _charged(do_replace(context, s, old, new, count))


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    _spend((str(s).count("\n") + 1) * (width if isinstance(width, int) else len(width)))
    return _charged(do_indent(s, width, first, blank))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers': not escaped for HTML, as Jinja's own is."""
    width = indent if isinstance(indent, int) else len(indent or "")
    if width > _MAX_JSON_INDENT or sum(map(len, separators or ())) > _MAX_JSON_INDENT:
        raise SecurityError(f"it indents JSON by more than {_MAX_JSON_INDENT} characters")
    return _charged(
        json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    )


# Syntax


class _GenerationTag(Extension):
    """{% generation %} ... {% endgeneration %} marks what an assistant said, for training; it prints what is in it."""

    tags = {"generation"}  # noqa: RUF012  (as the base class declares it)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Rewriter(NodeTransformer):
    """Adds the charges and checks. A body is charged with the raw text in it."""

    def _with_tick(self, node: Any) -> nodes.Node:
        raw = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        tick = nodes.Filter(nodes.Const(_ROUND + raw), _TICK, [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node

    visit_For = visit_Macro = visit_CallBlock = visit_Block = _with_tick

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), _CONCAT, [], [], None, None, lineno=node.lineno)

    def _checked(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node, _ADMIT, [], [], None, None, lineno=node.lineno)

    visit_List = visit_Dict = _checked

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        if node.ctx == "load":
            return self._checked(node)
        return self.generic_visit(node)
