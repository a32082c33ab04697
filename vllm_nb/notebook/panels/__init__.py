"""Live pictures of an engine, one Python file and one ES module each; docs/glossary.md names what they show.

To add one: a line in PANELS, and a Panel in a module of this folder.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vllm_nb.errors import VllmNbError
from vllm_nb.inspection.follow import LiveTimeline
from vllm_nb.inspection.observed import Observed
from vllm_nb.inspection.timeline import Timeline

if TYPE_CHECKING:
    from vllm_nb.notebook.panels.panel import Panel

PANELS = {  # name -> "module:class", in the order of a dashboard
    "kv": "kv:KvPanel",
    "throughput": "throughput:ThroughputPanel",
    "schedule": "schedule:SchedulePanel",
    "tokens": "tokens:TokensPanel",
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
    check_installed()
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


def check_installed() -> None:
    """Raises VllmNbError where anywidget is missing."""
    try:
        import anywidget  # noqa: F401
    except ImportError:
        raise VllmNbError(
            "panels need anywidget, which is not installed here: `pip install 'vllm-nb[lab]'`, then restart the kernel"
        ) from None
