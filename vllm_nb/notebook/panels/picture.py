"""A picture in a page: its state in traits, drawn by an ES module, and as static SVG for where there is no kernel."""

from collections.abc import Callable
from typing import Any, ClassVar

import anywidget
import traitlets
from IPython.core.getipython import get_ipython
from IPython.display import display

from vllm_nb.errors import VllmNbError
from vllm_nb.notebook.panels.bundle import bundle, style
from vllm_nb.notebook.panels.saving import Savable
from vllm_nb.notebook.panels.svg import Svg
from vllm_nb.notebook.subshells import react_while_cells_run


class Picture(anywidget.AnyWidget, Savable):
    """A subclass says which module draws it, and how it is drawn without one (`draw`, `numbers`).

    state: what the module in static/ draws, plain data, complete. transport: of a panel with a player, else empty.
    frame: number of the state; the browser answers with it when it has drawn that.
    """

    title: ClassVar[str]
    module: ClassVar[str]  # in static/
    styles: ClassVar[tuple[str, ...]] = ()  # in static/, besides panel.css

    state = traitlets.Dict().tag(sync=True)
    transport = traitlets.Dict().tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)
    panel_id = traitlets.Unicode().tag(sync=True)  # by which its view finds its model

    def __init__(self) -> None:
        type(self)._esm, type(self)._css = bundle(self.module), style("panel.css", "transport.css", *self.styles)
        super().__init__()
        self.panel_id = self.model_id
        self.on_msg(self._receive)
        react_while_cells_run(self)

    # What a subclass says

    def draw(self, state: dict[str, Any]) -> Svg:
        """The static picture of a state."""
        raise NotImplementedError

    def numbers(self, state: dict[str, Any]) -> str:
        """The same as an HTML table, for those who cannot see the picture."""
        raise NotImplementedError

    def now(self) -> dict[str, Any]:
        """The state to make a static picture of."""
        return self.state

    def _receive(self, _: Any, content: dict[str, Any], buffers: list[Any]) -> None:
        """A message of the browser; perhaps on a thread of the kernel's."""

    def set(self, **settings: Any) -> None:
        """Set traits of the panel, as the reader could in the browser. Raises VllmNbError for one it does not have."""
        known = self.trait_names(setting=True)
        for name, value in settings.items():
            if name not in known:
                raise VllmNbError(f"panel {self.title!r} has no setting {name!r}; it has {', '.join(known) or 'none'}")
            setattr(self, name, value)

    # Static pictures

    def picture(self) -> Svg:
        """What the panel shows now."""
        return self.draw(self.now())

    def html(self) -> str:
        """What the panel shows now, for a page without widgets."""
        state = self.now()
        return f'<figure class="vllm-nb vn-panel">{self.draw(state)}{self.numbers(state)}</figure>'

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle = super()._repr_mimebundle_(**options)
        assert bundle is not None  # only of a widget without a view
        return bundle[0] | {"text/html": self.html()}, bundle[1]

    def _ipython_display_(self) -> None:
        show_with_picture(self, self.model_id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.title}>"


def show_with_picture(widget: Any, panel_id: str) -> None:
    """Show a widget and, as an output of its own, its picture, which the view of that panel hides where there is one.

    In one output a page without widgets would have to choose the picture, and not all do: JupyterLab says "model not
    found" of a notebook that is opened again, nbconvert leaves room for a script from elsewhere.
    """
    bundle, metadata = widget._repr_mimebundle_()
    drawn = bundle.pop("text/html")
    display(bundle, raw=True, metadata=metadata)
    handle = display(_standing_in(drawn, panel_id), raw=True, display_id=True)
    _draw_again_at_the_end(widget.html, drawn, lambda new: handle.update(_standing_in(new, panel_id), raw=True))


def _standing_in(picture: str, panel_id: str) -> dict[str, str]:
    return {"text/html": f'<div class="vn-picture-{panel_id}">{picture}</div>', "text/plain": ""}


def _draw_again_at_the_end(draw: Callable[[], str], drawn: str, update: Callable[[str], None]) -> None:
    """When the cell that runs has ended, where what is to be seen has changed: `%%vllm --panel` shows its panel before
    the answer begins, and the notebook is saved with the picture."""
    shell = get_ipython()
    if shell is None:
        return

    def at_the_end(_: Any) -> None:
        shell.events.unregister("post_run_cell", at_the_end)
        if (picture := draw()) != drawn:
            update(picture)

    shell.events.register("post_run_cell", at_the_end)
