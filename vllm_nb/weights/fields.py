"""Typed reading of data that comes from outside (config.json, GGUF metadata): a fault names its field and its file."""

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_nb.errors import ModelLoadError

MAX_SIZE = 2**31 - 1
MAX_LAYERS = 4096  # far above any model, far below what would exhaust memory

_REQUIRED = object()


class Fields:
    """A mapping whose values are checked as they are read.

    prefix: what every key starts with ("llama." in GGUF). inside: the names of the objects this one lies in, for
    messages. A value of None, or a missing key, gives the default; without a default that is an error.
    Every fault is a ModelLoadError.
    """

    def __init__(self, values: Mapping[str, Any], path: Path, *, prefix: str = "", inside: str = ""):
        self.values = values
        self.path = path
        self.prefix = prefix
        self.inside = inside

    def __contains__(self, name: str) -> bool:
        return self.values.get(self.prefix + name) is not None

    def integer(self, name: str, default: Any = _REQUIRED, *, low: int = 1, high: int = MAX_SIZE) -> Any:
        """A whole number from `low` to `high`; the default comes back as it is."""
        value = self._get(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(name, f"must be a whole number from {low} to {high}, not {reprlib.repr(value)}")
        return value

    def number(self, name: str, default: Any = _REQUIRED, *, above: float | None = None) -> Any:
        """A finite number, greater than `above` if given, as a float; the default comes back as it is."""
        value = self._get(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise self.error(name, f"must be a number, not {reprlib.repr(value)}")
        if above is not None and value <= above:
            raise self.error(name, f"must be greater than {above:g}, not {reprlib.repr(value)}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        return self._typed(name, default, bool, "true or false")

    def text(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._typed(name, default, str, "a text")

    def mapping(self, name: str, default: Any = _REQUIRED) -> Any:
        """The fields below `name`; the default comes back as it is."""
        values = self._typed(name, default, dict, "an object")
        return values if values is default else Fields(values, self.path, inside=f"{self.inside}{name}.")

    def items(self, name: str, default: Any = _REQUIRED) -> Any:
        """A list."""
        return self._typed(name, default, list, "a list")

    def error(self, name: str, problem: str) -> ModelLoadError:
        return ModelLoadError(f"The field {self.inside + self.prefix + name!r} in {self.path} {problem}.")

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(self.prefix + name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise self.error(name, "is missing")
        return default

    def _typed(self, name: str, default: Any, kind: type, description: str) -> Any:
        value = self._get(name, default)
        if value is not default and not isinstance(value, kind):
            raise self.error(name, f"must be {description}, not {reprlib.repr(value)}")
        return value


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelLoadError."""
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ModelLoadError(f"{path} must hold a JSON object, not {reprlib.repr(values)}.")
    return values


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number with hundreds of digits
        return False
