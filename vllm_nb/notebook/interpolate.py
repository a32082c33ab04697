"""`{{ expr }}` in a prompt or on a magic's line, over the notebook's namespace.

Jinja in its sandbox, with nothing but `{{ }}` as syntax: single braces, `{% %}` and `{# #}` are ordinary text, for
prompts are full of JSON, LaTeX, C and templates. An expression can read the notebook's objects but not change them.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

_BUILTINS: tuple[Callable[..., Any], ...] = (
    *(abs, all, any, bool, dict, enumerate, float, int, len, list, max, min),
    *(repr, reversed, round, set, sorted, sum, tuple, zip),
)
_LISTED = 12  # columns in a message
_NEVER_IN_A_PROMPT = "\ufffe"  # a noncharacter: Jinja's statements and comments can't be switched off, only moved away


def has_expression(text: str) -> bool:
    return "{{" in text


def interpolate(text: str, namespace: Mapping[str, Any]) -> str:
    """`text` with each `{{ expr }}` replaced by its value. Raises UsageError for a missing name or a syntax error."""
    if not has_expression(text):  # Jinja is imported by the cells that need it
        return text
    from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError

    try:
        return _environment().from_string(text).render(namespace)
    except TemplateSyntaxError as error:
        raise UsageError(_syntax_message(text, error.lineno, error.message or "")) from None
    except UndefinedError as error:
        raise UsageError(_missing_message(text, namespace, error.message or "")) from None
    except TemplateError as error:  # SecurityError: what the sandbox refuses
        raise UsageError(f"{{{{ }}}}: {error}") from None
    except Exception as error:  # the expression's own
        raise UsageError(f"an expression in {{{{ }}}} failed: {type(error).__name__}: {error}") from None


def template(text: str) -> Callable[[Mapping[str, Any]], str]:
    """`interpolate` for the rows of a table: what is compiled is compiled once. Raises UsageError for a syntax
    error."""
    if not has_expression(text):
        return lambda namespace: text
    from jinja2 import TemplateSyntaxError, UndefinedError

    try:
        compiled = _environment().from_string(text)
    except TemplateSyntaxError as error:
        raise UsageError(_syntax_message(text, error.lineno, error.message or "")) from None

    def render(namespace: Mapping[str, Any]) -> str:
        try:
            return compiled.render(namespace)
        except UndefinedError as error:
            raise UsageError(_missing_message(text, namespace, error.message or "", of_row=True)) from None
        except Exception as error:  # the expression's own, or what the sandbox refuses
            raise UsageError(f"an expression in {{{{ }}}} failed: {type(error).__name__}: {error}") from None

    return render


def names_in(text: str) -> set[str]:
    """What a text's expressions ask for, besides the functions that are always there. Raises UsageError."""
    if not has_expression(text):
        return set()
    from jinja2 import TemplateSyntaxError, meta

    environment = _environment()
    try:
        return meta.find_undeclared_variables(environment.parse(text)) - set(environment.globals)
    except TemplateSyntaxError as error:
        raise UsageError(_syntax_message(text, error.lineno, error.message or "")) from None


def expressions(text: str) -> list[str]:
    """The `{{ expr }}` of a text, braces included, in order. Raises UsageError for a syntax error."""
    if not has_expression(text):
        return []
    from jinja2 import TemplateSyntaxError

    found: list[str] = []
    inside = False
    try:
        for _, kind, value in _environment().lex(text):
            if kind == "variable_begin":
                inside = True
                found.append("")
            if inside:
                found[-1] += value
            inside = inside and kind != "variable_end"
    except TemplateSyntaxError as error:
        raise UsageError(_syntax_message(text, error.lineno, error.message or "")) from None
    return found


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x' or 'y'?", or nothing when no known name is near."""
    known = list(known)
    begun = [candidate for candidate in known if candidate.startswith(name)]
    near = begun[:3] or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


@cache
def _environment() -> "SandboxedEnvironment":
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

    environment = ImmutableSandboxedEnvironment(
        block_start_string=_NEVER_IN_A_PROMPT + "%",
        block_end_string="%" + _NEVER_IN_A_PROMPT,
        comment_start_string=_NEVER_IN_A_PROMPT + "#",
        comment_end_string="#" + _NEVER_IN_A_PROMPT,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.globals = {function.__name__: function for function in _BUILTINS}
    # `str` itself would open str.format, the usual way out of the sandbox.
    environment.globals |= {"range": safe_range, "str": lambda value="": str(value)}
    return environment


def _syntax_message(text: str, line: int, message: str) -> str:
    what = "a '{{' is never closed" if message.startswith("unexpected end of template") else message.rstrip(".")
    where = text.splitlines()[line - 1].strip()
    return f'{{{{ }}}} on line {line}: {what}, in {where!r}. For two literal braces write {{{{ "{{{{" }}}}.'


def _missing_message(text: str, namespace: Mapping[str, Any], message: str, *, of_row: bool = False) -> str:
    from jinja2 import meta

    environment = _environment()
    used = meta.find_undeclared_variables(environment.parse(text))
    missing = sorted(used - set(namespace) - set(environment.globals))
    if not missing:  # the name is there, but not what is asked of it: an attribute or a key
        return f"{{{{ }}}}: {message}"
    names, name = [name for name in namespace if not name.startswith("_")], missing[0]
    if of_row:
        columns = [each for each in names if each != "row"]
        hint = did_you_mean(name, columns) or (f"; it has {', '.join(columns)}" if len(columns) <= _LISTED else "")
        return f"{{{{ {name} }}}}: the row has no {name!r}{hint}"
    return f"{{{{ {name} }}}}: {name!r} is not defined in this notebook{did_you_mean(name, names)}"
