"""What a flag names in the notebook: a class, a function, a picture; found without running anything."""

import ast
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError

from vllm_nb.notebook.interpolate import did_you_mean

# What a type may be written with: `City`, `shop.City`, `list[City]`, `City | None`, `Literal["a", "b"]`.
_OF_TYPES = (
    *(ast.Expression, ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.Constant, ast.BinOp, ast.BitOr, ast.Load),
    ast.List,
)


def named(text: str, namespace: Mapping[str, Any], flag: str) -> Any:
    """The notebook's object of that name, or the type that is written so. Raises UsageError for the nearest name."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError:
        raise UsageError(f"%%vllm: {flag} takes a name of this notebook, not {text!r}") from None
    if not all(isinstance(node, _OF_TYPES) for node in ast.walk(tree)):
        raise UsageError(f"%%vllm: {flag} takes a name of this notebook or a type such as list[City], not {text!r}")
    try:
        return eval(compile(tree, flag, "eval"), {}, _Names(namespace))
    except NameError as error:
        known = [name for name in namespace if not name.startswith("_")]
        hint = did_you_mean(str(error.name), known)
        raise UsageError(f"%%vllm: {flag}: {error.name!r} is not defined in this notebook{hint}") from None
    except (AttributeError, TypeError, KeyError) as error:
        raise UsageError(f"%%vllm: {flag} {text}: {error}") from None


class _Names(dict[str, Any]):
    """The notebook's names; eval asks them before Python's own."""

    def __init__(self, namespace: Mapping[str, Any]):
        super().__init__()
        self._namespace = namespace

    def __missing__(self, name: str) -> Any:
        return self._namespace[name]


def schema_of(text: str, namespace: Mapping[str, Any]) -> Any:
    """`--schema`: a type or dictionary of the notebook, a file of JSON, or JSON itself."""
    stripped = text.strip()
    try:
        if stripped.startswith("{"):
            return json.loads(stripped)
        if stripped.endswith(".json"):
            return json.loads(Path(stripped).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"%%vllm: --schema {stripped}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"%%vllm: --schema: this is not JSON: {error}") from None
    return named(stripped, namespace, "--schema")


def tools_of(text: str, namespace: Mapping[str, Any]) -> list[Callable[..., Any]]:
    """`--tools f,g`: functions of the notebook."""
    found = [named(name, namespace, "--tools") for name in text.split(",") if name.strip()]
    wrong = next((tool for tool in found if not callable(tool)), None)
    if wrong is not None or not found:
        raise UsageError(f"%%vllm: --tools takes names of functions, separated by commas, not {text!r}")
    return found


def image_of(text: str, namespace: Mapping[str, Any]) -> Any:
    """`--image`: a picture of the notebook, else a path or URL."""
    return namespace[text] if text.isidentifier() and text in namespace else text
