"""`vllm-nb doctor`: what is here, what was chosen, and what to do about what is wrong."""

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from vllm_nb.console import print_table
from vllm_nb.errors import VllmNbError


@dataclass(frozen=True)
class Finding:
    """One line. advice: what to do; None where all is well."""

    subject: str
    state: str
    advice: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Called by vllm_nb.cli."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Exit status 1 when something needs attention."""
    findings = [finding for examine in EXAMINATIONS for finding in examine()]
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    return int(any(finding.advice for finding in findings))


def _print(findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for _ in range(3):
        table.add_column()
    for finding in findings:
        mark = Text("!", "yellow") if finding.advice else Text("✓", "green")
        table.add_row(mark, Text(finding.subject), Text(finding.state))
        if finding.advice:
            table.add_row("", "", Text(finding.advice, "yellow"))
    print_table(table)


def _packages() -> Iterator[Finding]:
    yield Finding("vllm_nb", f"{version('vllm-nb')}, Python {platform.python_version()} on {platform.platform()}")
    for package in ("torch", "numba", "tokenizers", "ipython", "jupyterlab", "huggingface-hub"):
        try:
            yield Finding(package, version(package))
        except PackageNotFoundError:
            extra = {"jupyterlab": "lab"}.get(package)
            advice = f"pip install 'vllm-nb[{extra}]'" if extra else f"pip install {package}"
            yield Finding(package, "not installed", advice)


def _devices() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        from vllm_nb.engine.placement import obstacle_to_triton

        yield Finding("GPU", torch.cuda.get_device_name())
        obstacle = obstacle_to_triton(torch.device("cuda"))
        yield Finding("GPU kernels", "plain PyTorch" if obstacle else "Triton", obstacle or None)
    elif torch.version.cuda:
        yield Finding("GPU", "PyTorch is built for CUDA and sees no GPU", "check the driver with nvidia-smi")
    else:
        yield Finding("GPU", "none; PyTorch is built for the CPU")


def _cpu_kernels() -> Iterator[Finding]:
    from vllm_nb.kernels import cpu

    try:
        chosen: dict[str, Any] = dict(cpu.describe())
    except RuntimeError as error:
        yield Finding("CPU kernels", str(error), "start engines with --backend reference")
        return
    yield Finding("processor", chosen["processor"])
    yield Finding("CPU kernels", f"{chosen['variant']}; possible here: {', '.join(chosen['available'])}")
    if chosen["rejected"]:
        names = ", ".join(chosen["rejected"])
        yield Finding("self-test", f"failed by: {names}", "please report this, with the lines above")
    yield Finding("threads", f"{chosen['threads']}, OpenMP: {chosen['openmp']}", _openmp_advice(chosen["openmp"]))
    yield Finding("compiled kernels", str(chosen["cache"]))


def _openmp_advice(openmp: str) -> str | None:
    return "install libgomp (Debian: apt install libgomp1) to use all cores" if openmp == "none" else None


def _default_model() -> Iterator[Finding]:
    from vllm_nb.weights.packaged import PACKAGED, find

    model = PACKAGED["smollm2"]
    if path := find(model):
        yield Finding("default model", str(path))
    elif find_spec("pip"):
        yield Finding("default model", "not on this machine yet; the first start fetches it (92 MB)")
    else:
        yield Finding("default model", "not on this machine", model.install_command)


def _engines() -> Iterator[Finding]:
    from vllm_nb.client.process import list_engines

    try:
        engines = list_engines()
    except VllmNbError as error:
        yield Finding("engines", str(error), "see the message")
        return
    if not engines:
        yield Finding("engines", "none running")
    for engine in engines:
        yield Finding("engine", f"{engine.name} ({engine.model}), {engine.status}")


EXAMINATIONS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _packages,
    _devices,
    _cpu_kernels,
    _default_model,
    _engines,
)
