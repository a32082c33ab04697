"""Live pictures of an engine, one Python file and one ES module each; docs/glossary.md names what they show.

To add one: a line in PANELS, and a Panel in a module of this folder.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vllm_nb.client.process import attach
from vllm_nb.errors import VllmNbError
from vllm_nb.inspection.follow import LiveTimeline
from vllm_nb.inspection.observed import Observed
from vllm_nb.inspection.timeline import Timeline

if TYPE_CHECKING:
    from vllm_nb.notebook.panels.dashboard import Dashboard
    from vllm_nb.notebook.panels.panel import Panel
    from vllm_nb.notebook.panels.picture import Picture

PANELS = {  # name -> "module:class", in the order of a dashboard
    "kv": "kv:KvPanel",
    "throughput": "throughput:ThroughputPanel",
    "schedule": "schedule:SchedulePanel",
    "memory": "memory:MemoryPanel",
    "paging": "paging:PagingPanel",
}

_LIVE: dict[str, tuple[Observed, LiveTimeline]] = {}  # what the panels of an engine look at, by the engine's identity


def open_panel(timeline: Timeline, name: str, settings: dict[str, Any]) -> "Panel":
    """The panel of that name, the same one for the same timeline. settings: traits of it to set.

    Raises VllmNbError for an unknown name, or where anywidget is missing.
    """
    if name not in PANELS:
        raise VllmNbError(f"there is no panel {name!r}; there are {', '.join(sorted(PANELS))}")
    _check_installed()
    from vllm_nb.notebook.panels.panel import panel_of

    module, _, kind = PANELS[name].partition(":")
    panel = panel_of(timeline, getattr(import_module(f"{__name__}.{module}"), kind))
    panel.set(**settings)
    return panel


def open_live_panel(source: Observed, name: str, settings: dict[str, Any]) -> "Panel":
    """A panel of an engine as it is now. Raises VllmNbError as open_panel, EngineDeadError where there is none."""
    known = _LIVE.get(source.identity)
    if known is None or known[1].ended:
        _LIVE[source.identity] = known = (source, source.timeline())
    return open_panel(known[1], name, settings)


def panel(
    name: str,
    source: Observed | Timeline | None = None,
    *,
    model: str | None = None,
    config: Mapping[str, Any] | None = None,
    **settings: Any,
) -> "Picture":
    """A panel of `source`: an engine, a client or a recording; None: of the engine that runs.

    With a `model` and the name "memory": what that model would take with an EngineConfig of these fields, before it is
    loaded. Raises VllmNbError for an unknown name or setting, ValueError where several engines run.
    """
    if model is None:
        return (source or attach()).panel(name, **settings)
    if name != "memory":
        raise VllmNbError(f"panel {name!r} shows an engine that runs; of a model alone there is only 'memory'")
    _check_installed()
    from vllm_nb.notebook.panels.memory import MemoryPicture

    return MemoryPicture.of_model(model, dict(config or {}), settings)


def dashboard(source: Observed | Timeline | None = None) -> "Dashboard":
    """All panels together, of an engine, a client or a recording; None: of the engine that runs."""
    _check_installed()
    from vllm_nb.notebook.panels.dashboard import Dashboard

    return Dashboard(source or attach())


def _check_installed() -> None:
    try:
        import anywidget  # noqa: F401
    except ImportError:
        raise VllmNbError(
            "panels need anywidget, which is not installed here: `pip install 'vllm-nb[lab]'`, then restart the kernel"
        ) from None
