"""`%vllm models` and `%vllm doctor`: what is on this machine."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from vllm_nb.catalogue import known_models
from vllm_nb.errors import VllmNbError
from vllm_nb.notebook.commands import Action, no_arguments
from vllm_nb.notebook.display import Table
from vllm_nb.notebook.failures import told_to_the_user
from vllm_nb.notebook.session import Session
from vllm_nb.notebook.tables import findings_table, model_table


def _models(session: Session, options: argparse.Namespace) -> Table:
    return model_table(known_models(Path.cwd()), session.engines.running())


def _doctor(session: Session, options: argparse.Namespace) -> Table:
    with told_to_the_user():
        return findings_table(_findings())


def _findings() -> list[dict[str, Any]]:
    """Of `vllm-nb doctor`, in a process of its own: it imports torch, and this kernel does not."""
    command = [sys.executable, "-P", "-m", "vllm_nb.cli", "doctor", "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    try:
        findings: list[dict[str, Any]] = json.loads(done.stdout)
    except ValueError:
        raise VllmNbError(f"`vllm-nb doctor` failed: {done.stderr.strip()[-500:]}") from None
    return findings


MODELS = Action("The models that are known on this machine, and what runs.", no_arguments, _models)
DOCTOR = Action("What is here, what was chosen, and what to do about what is wrong.", no_arguments, _doctor)
