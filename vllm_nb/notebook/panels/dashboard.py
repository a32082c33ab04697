"""All panels of an engine, or of a recording, side by side; they show the same moment, and one bar moves them."""

from typing import Any

import ipywidgets

from vllm_nb.inspection.observed import Observed
from vllm_nb.inspection.timeline import Timeline
from vllm_nb.notebook.panels import PANELS
from vllm_nb.notebook.panels.panel import Panel
from vllm_nb.notebook.panels.picture import show_with_picture
from vllm_nb.notebook.panels.saving import Savable
from vllm_nb.notebook.panels.svg import Svg

_GAP = 12.0
_NARROWEST = 600  # pixels; below, the words in charts get too small to read


class Dashboard(ipywidgets.GridBox, Savable):  # type: ignore[misc]
    """panels: by name, as `source.panel(NAME)` gives them."""

    def __init__(self, source: Observed | Timeline):
        self.panels: dict[str, Panel] = {name: source.panel(name) for name in PANELS}
        layout = ipywidgets.Layout(
            grid_template_columns=f"repeat(auto-fit, minmax(min({_NARROWEST}px, 100%), 1fr))",
            grid_gap=f"{_GAP:.0f}px",
            align_items="flex-start",
        )
        super().__init__(list(self.panels.values()), layout=layout)
        self.add_class("vn-dashboard")  # panel.css: the first panel's bar serves all

    def picture(self) -> Svg:
        """What the panels show now, one below the other."""
        pictures = [panel.picture() for panel in self.panels.values()]
        whole = Svg(
            max(picture.width for picture in pictures),
            sum(picture.height + _GAP for picture in pictures),
            "Dashboard",
            ", ".join(panel.title for panel in self.panels.values()),
        )
        y = 0.0
        for picture in pictures:
            whole.place(picture, 0, y)
            y += picture.height + _GAP
        return whole

    def html(self) -> str:
        """What the panels show now, for a page without widgets."""
        return "".join(panel.html() for panel in self.panels.values())

    def _repr_mimebundle_(self, **options: Any) -> Any:
        for panel in self.panels.values():
            panel.expect_view()
        bundle = super()._repr_mimebundle_(**options)
        assert bundle is not None  # only of a widget without a view
        return bundle | {"text/html": self.html()}, {}

    def _ipython_display_(self) -> None:
        show_with_picture(self, next(iter(self.panels.values())).panel_id)

    def __repr__(self) -> str:
        return f"<Dashboard: {', '.join(self.panels)}>"
