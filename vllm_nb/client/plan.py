"""What memory a model would take, asked of a process of its own: the notebook's kernel does not import the engine."""

import json
import os
import subprocess
import sys
from typing import Any

from vllm_nb.client.launch import EngineSpec
from vllm_nb.errors import ModelLoadError

_LIMIT = 300.0  # seconds; a model that is not here yet is downloaded


def plan_memory(model: str | os.PathLike[str], **config: Any) -> dict[str, Any]:
    """Of the engine that `start` would make, as engine.memory.MemoryPlan has it, from the headers of the model's files.

    config: fields of EngineConfig. Raises ModelLoadError, ValueError for wrong settings.
    """
    spec = EngineSpec.of(model, config)
    flags = [_flag(name, value) for name, value in spec.config.items() if value is not None]
    command = [sys.executable, "-P", "-m", "vllm_nb.cli", "memory", "--json", *flags, "--", spec.model]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_NB_")}
    try:
        done = subprocess.run(
            command,  # -P: no modules of the working directory
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            cwd="/",  # as engines have it
            env=environment,  # settings in it are the command's: `start` reads none
        )
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
