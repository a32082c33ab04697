"""What holds where a flag is not given: `%config VllmMagics.temperature = 0`, or `[tool.vllm_nb]` of the project.

A flag goes before `%config`, that before the nearest pyproject.toml with such a table (looked for from the notebook's
folder upwards, when the extension is loaded), that before IPython's own configuration files, and all of them before
what the model's makers recommend.
"""

import tomllib
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError
from traitlets import Bool, Float, Int, TraitError, Unicode, validate
from traitlets.config import Configurable

from vllm_nb.config import BACKENDS, DEVICES, DTYPES, EngineConfig
from vllm_nb.notebook.interpolate import did_you_mean
from vllm_nb.sampling import SamplingParams

_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "max_tokens", "min_tokens", "seed", "logprobs"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty"),
)
_ENGINE = ("device", "backend", "dtype", "max_model_len", "kv_fraction", "threads")


def _number(kind: Any, text: str) -> Any:
    return kind(None, allow_none=True, help=text).tag(config=True)


def _text(text: str) -> Any:
    return Unicode(None, allow_none=True, help=text).tag(config=True)


class Settings(Configurable):
    """None: not set."""

    model = Unicode("smollm2", help="what %vllm start without a MODEL, or a cell, starts").tag(config=True)
    engine = _text("which engine %%vllm talks to, as %vllm ps names it")
    system = _text("system message")
    stream = Bool(True, help="show answers as they come").tag(config=True)
    confirm_tools = Bool(True, help="ask before a tool is called").tag(config=True)
    tool_rounds = Int(8, min=1, max=100, help="rounds of tool calls in a cell").tag(config=True)

    temperature = _number(Float, "0 always takes the likeliest token")
    top_p = _number(Float, "keep the likeliest tokens of this mass")
    top_k = _number(Int, "keep this many of the likeliest tokens")
    min_p = _number(Float, "drop tokens below this share of the likeliest")
    max_tokens = _number(Int, "longest answer")
    min_tokens = _number(Int, "shortest answer")
    seed = _number(Int, "the same seed gives the same text")
    logprobs = _number(Int, "alternatives to keep for each token")
    repetition_penalty = _number(Float, "above 1: less of what was said")
    frequency_penalty = _number(Float, "subtracted for each use of a token")
    presence_penalty = _number(Float, "subtracted once for a token that was used")

    device = _text(f"of engines that are started: {', '.join(DEVICES)}")
    backend = _text(f"whose kernels: {', '.join(BACKENDS)}")
    dtype = _text(f"of activations and KV cache: {', '.join(DTYPES)}")
    max_model_len = _number(Int, "prompt and answer together, in tokens")
    kv_fraction = _number(Float, "most of the free memory that the KV cache may take")
    threads = _number(Int, "CPU threads")
    idle_timeout = _number(Float, "seconds without requests after which an engine ends; 0: never")

    @validate(*_SAMPLING, *_ENGINE)
    def _check(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        kind = SamplingParams if name in _SAMPLING else EngineConfig
        try:
            if value is not None:
                kind(**{name: value})
        except ValueError as error:
            raise TraitError(str(error)) from None
        return value

    def cell_defaults(self) -> dict[str, Any]:
        """Options of `%%vllm` by their names."""
        given = self._given(*_SAMPLING, "engine", "system")
        return given | {"no_stream": not self.stream, "yes": not self.confirm_tools}

    def start_defaults(self) -> dict[str, Any]:
        """Options of vllm_nb.start."""
        given = self._given(*_ENGINE)
        if self.idle_timeout is not None:
            given["idle_timeout"] = self.idle_timeout or None
        return given

    def _given(self, *names: str) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def load_project(self, folder: Path) -> None:
        """Take what the project has. Raises UsageError for a table that can't be right."""
        path, table = _project_table(folder)
        known = [name for name, trait in self.traits(config=True).items() if name in Settings.class_trait_names()]
        for name, value in table.items():
            where = f"{path}: [tool.vllm_nb] {name}"
            if name not in known:
                raise UsageError(f"{where}: there is no such setting{did_you_mean(name, known)}")
            try:
                setattr(self, name, value)
            except TraitError as error:
                raise UsageError(f"{where}: {error}") from None


def _project_table(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The nearest pyproject.toml with our table, and the table; an empty one where there is none."""
    for parent in (folder, *folder.parents):
        path = parent / "pyproject.toml"
        if not path.is_file():
            continue
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("vllm_nb")
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from None
        if isinstance(table, dict):
            return path, table
    return folder, {}
