"""What the subcommands show: engines, outcomes, models and findings as small tables."""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vllm_nb.catalogue import KnownModel, size_text
from vllm_nb.client.outcomes import Failed, Outcome, Reused, Stopped, TimedOut
from vllm_nb.client.registry import ProcessInfo
from vllm_nb.inspection.view import EngineView
from vllm_nb.notebook.display import Table
from vllm_nb.notebook.engines import Engines

MOST_BLOCKS = 12  # of a block table that are shown


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
        "" if rows else "No engine is running; %vllm start starts one.",
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


def model_table(models: Iterable[KnownModel], running: Iterable[ProcessInfo]) -> Table:
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


def _model(info: ProcessInfo) -> str:
    """Its own name where it is known, else what was asked for."""
    return info.health.get("model") or info.model


def _activity(info: ProcessInfo) -> tuple[str, str]:
    """(status, idle time)."""
    requests = info.health.get("requests") or 0
    status = info.status if not requests else f"{requests} request" if requests == 1 else f"{requests} requests"
    seconds = info.health.get("idle_s")
    return (
        status,
        "" if seconds is None or requests else f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s",
    )


def step_table(view: EngineView, note: str = "") -> Table:
    """What an engine's last step did, and who waits: the step debugger's picture."""
    batch, size = view.batch, view.info.block_size
    rows = []
    for number in (*view.running, *view.waiting):
        seq = view.sequences[number]
        waits = f"waiting: {view.wait_reason(number)}" if seq.status == "waiting" else seq.status
        name = f"{seq.request_id} [{seq.choice}]"
        table = " ".join(map(str, seq.blocks[:MOST_BLOCKS])) + (" …" if len(seq.blocks) > MOST_BLOCKS else "")
        progress = f"{seq.computed} of {len(seq.tokens)}"
        rows.append((name, waits, str(batch.get(number, "")), progress, f"{seq.computed % size or '-'}", table))
    last = view.last_step
    words = [
        f"After step {view.step}{', paused' if view.paused else ''}: {len(view.running)} running,",
        f"{len(view.waiting)} waiting; {view.num_free} of {view.info.num_blocks} blocks free.",
    ]
    if last is not None:
        budget = f"{sum(last.num_tokens)} of {last.token_budget} tokens of its budget"
        words.append(f"It computed {budget} in {(last.prepare + last.forward + last.sample) * 1e3:.1f} ms.")
    columns = ("request", "status", "in this step", "computed", "in last block", "block table")
    return Table(columns, rows, " ".join([*words, note]).strip())
