"""What the subcommands show: engines, outcomes, models and findings as small tables."""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vllm_nb.catalogue import KnownModel, size_text
from vllm_nb.client.outcomes import Failed, Outcome, Reused, Stopped, TimedOut
from vllm_nb.client.registry import EngineInfo
from vllm_nb.notebook.display import Table
from vllm_nb.notebook.engines import Engines


def engine_table(engines: Engines) -> Table:
    """Those that run and those that were attached, the current one marked."""
    rows = [
        (_mark(engines, info.id), info.name, _model(info), *_activity(info), str(info.pid), info.url)
        for info in engines.running()
    ]
    rows += [
        (_mark(engines, name), name, engine.client.model, "attached", "", "", engine.client.url)
        for name, engine in engines.attached.items()
    ]
    return Table(
        ("", "engine", "model", "status", "idle", "pid", "address"),
        rows,
        "" if rows else "No engine is running; %vllm start, or a %%vllm cell, starts one.",
    )


def outcome_table(outcome: Outcome) -> Table:
    """What came of a start that worked."""
    assert not isinstance(outcome, Failed | TimedOut)
    info, took = outcome.info, f"{outcome.seconds:.2f} s"
    status = f"already running, reused in {took}" if isinstance(outcome, Reused) else f"started in {took}"
    context = f"{info.health['max_model_len']:,} tokens"
    return Table(("engine", "model", "context", "status"), [(info.name, _model(info), context, status)])


def stopped_table(stopped: Sequence[Stopped]) -> Table:
    rows = [(each.name, str(each.pid), _HOW[each.how]) for each in stopped]
    return Table(("engine", "pid", ""), rows, "" if stopped else "No engine was running.")


def model_table(models: Iterable[KnownModel], running: Iterable[EngineInfo]) -> Table:
    """running: engines, to say which model is loaded."""
    loaded = {info.model: info.name for info in running}
    rows = []
    for model in models:
        state = f"runs as {loaded[model.name]}" if model.name in loaded else "" if model.here else "not here yet"
        rows.append((model.name, model.source, size_text(model.bytes), state))
    return Table(("model", "source", "size", ""), rows, "Any hub id, folder of safetensors or GGUF file does as well.")


def findings_table(findings: Sequence[Mapping[str, Any]]) -> Table:
    """What `vllm-nb doctor --json` has found, and what only the notebook's process can tell."""
    rows = []
    for finding in [*findings, *_of_this_process()]:
        rows.append(("!" if finding["advice"] else "✓", finding["subject"], finding["state"]))
        rows += [("", "", finding["advice"])] if finding["advice"] else []
    return Table(("", "", ""), rows)


def _of_this_process() -> Iterable[dict[str, Any]]:
    for package, wrong in (("ipykernel", "7.0"), ("anywidget", None)):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield {"subject": package, "state": "not installed", "advice": "pip install 'vllm-nb[lab]'"}
            continue
        bad = wrong is not None and version.startswith(wrong)
        advice = "pip install 'ipykernel>=7.1': output of threads gets lost in 7.0" if bad else None
        yield {"subject": package, "state": version, "advice": advice}


_HOW = {
    "shutdown": "stopped",
    "terminated": "stopped (it had to be terminated)",
    "killed": "stopped (it had to be killed)",
}


def _mark(engines: Engines, name_or_id: str) -> str:
    return "▸" if engines.is_current(name_or_id) else ""


def _model(info: EngineInfo) -> str:
    """Its own name where it is known, else what was asked for."""
    return info.health.get("model") or info.model


def _activity(info: EngineInfo) -> tuple[str, str]:
    """(status, idle time)."""
    requests = info.health.get("requests") or 0
    status = info.status if not requests else f"{requests} request" if requests == 1 else f"{requests} requests"
    seconds = info.health.get("idle_s")
    return (
        status,
        "" if seconds is None or requests else f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s",
    )
