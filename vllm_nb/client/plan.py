"""What memory a model would take, asked of a process of its own: the notebook's kernel does not import the engine."""

import json
import os
import subprocess
import sys
from typing import Any

from vllm_nb.config import EngineConfig
from vllm_nb.errors import ModelLoadError

_LIMIT = 300.0  # seconds; a model that is not here yet is downloaded


def plan_memory(model: str | os.PathLike[str], **config: Any) -> dict[str, Any]:
    """As engine.memory.MemoryPlan has it, from the headers of the model's files. config: fields of EngineConfig.

    Raises ModelLoadError, ValueError for wrong settings.
    """
    settings = EngineConfig.from_dict(config).to_dict()
    given = [f"{_flag(name, settings[name])}" for name in config if settings[name] is not None]
    command = [sys.executable, "-m", "vllm_nb.cli", "memory", str(model), "--json", *given]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        raise ModelLoadError(f"reading the headers of {model} took longer than {_LIMIT:.0f} s") from None
    if done.returncode != 0:
        raise ModelLoadError(done.stderr.strip().removeprefix("error: ") or f"`{' '.join(command)}` failed")
    return json.loads(done.stdout)


def _flag(name: str, value: Any) -> str:
    """As vllm-nb's command line takes it."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag}={value}"
