"""What all panels have in common: state in traits, frames when somebody looks, a static picture, a transport bar."""

import json
import time
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets

from vllm_nb.errors import VllmNbError
from vllm_nb.inspection.follow import LiveTimeline
from vllm_nb.inspection.timeline import Timeline
from vllm_nb.inspection.view import EngineView
from vllm_nb.notebook.panels.bundle import bundle, style
from vllm_nb.notebook.panels.player import Player
from vllm_nb.notebook.panels.svg import Svg

IN_FLIGHT = 2  # frames that may be on their way to the browser
OVERDUE = 0.25  # seconds after which a frame counts as lost: a kernel that is busy with a cell hears no answers
GONE = 30.0  # seconds without any answer after which the page was probably closed
SLOW = 5.0  # seconds between two frames then


class Panel(anywidget.AnyWidget):
    """A panel of one player. A subclass says what it shows (`look`, `draw`, `numbers`) and which module draws it.

    state: what the module in static/ draws, plain data, complete. transport: the bar below, see Player.transport.
    frame: number of the state; the browser answers with it when it has drawn that.
    """

    title: ClassVar[str]
    module: ClassVar[str]  # in static/
    styles: ClassVar[tuple[str, ...]] = ()  # in static/, besides panel.css

    state = traitlets.Dict().tag(sync=True)
    transport = traitlets.Dict().tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)
    panel_id = traitlets.Unicode().tag(sync=True)  # by which its view finds its model

    def __init__(self, player: Player):
        self.player = player
        self._views: dict[str, bool] = {}  # those in the browser, and whether they can be seen
        self._drawn = 0
        self._sent = self._answered = time.monotonic()
        type(self)._esm, type(self)._css = bundle(self.module), style("panel.css", "transport.css", *self.styles)
        super().__init__()
        self.panel_id = self.model_id
        self.on_msg(self._receive)
        with player.lock:
            self.show(player, moved=True)
        player.add(self)

    # What a subclass says

    def look(self, view: EngineView) -> dict[str, Any]:
        """The state at a moment."""
        raise NotImplementedError

    def draw(self, state: dict[str, Any]) -> Svg:
        """The static picture of a state."""
        raise NotImplementedError

    def numbers(self, state: dict[str, Any]) -> str:
        """The same as an HTML table, for those who cannot see the picture."""
        raise NotImplementedError

    @property
    def timeline(self) -> Timeline:
        return self.player.timeline

    def set(self, **settings: Any) -> None:
        """Set traits of the panel, as the reader could in the browser. Raises VllmNbError for one it does not have."""
        known = self.trait_names(setting=True)
        for name, value in settings.items():
            if name not in known:
                raise VllmNbError(f"panel {self.title!r} has no setting {name!r}; it has {', '.join(known) or 'none'}")
            setattr(self, name, value)

    # A screen of the player

    @property
    def visible(self) -> bool:
        return any(self._views.values())

    def is_ready(self, now: float) -> bool:
        overdue = SLOW if now - self._answered > GONE else OVERDUE
        return self.frame - self._drawn < IN_FLIGHT or now - self._sent > overdue

    def show(self, player: Player, moved: bool) -> int:
        """One message with all that has changed. Returns its size, about."""
        state, transport = self.look(player.view), player.transport()
        self._sent = time.monotonic()
        if self.frame == self._drawn:
            self._answered = self._sent
        with self.hold_sync():
            self.state, self.transport = state, transport
            self.frame += 1
        return len(json.dumps(state))

    def _receive(self, _: Any, content: dict[str, Any], buffers: list[Any]) -> None:
        """From the browser; perhaps on a thread of the kernel's."""
        self._answered = time.monotonic()
        player = self.player
        match content:
            case {"type": "drawn", "frame": int(frame)}:
                self._drawn = max(self._drawn, frame)
                player.wake()
            case {"type": "seen", "view": str(name), "visible": bool(visible)}:
                self._views[name] = visible
                player.refresh(self)
            case {"type": "gone", "view": str(name)}:
                self._views.pop(name, None)
            case {"type": "play"}:
                player.play()
            case {"type": "halt"}:
                player.halt()
            case {"type": "follow"}:
                player.follow()
            case {"type": "seek", "step": int(step)}:
                player.seek(step)
            case {"type": "speed", "speed": int(speed) | float(speed)}:
                player.set_speed(float(speed))

    # Static pictures

    def picture(self) -> Svg:
        """What the panel shows now."""
        with self.player.lock:
            return self.draw(self.look(self.player.view))

    def save(self, path: str | Path) -> Path:
        """Write what the panel shows now as SVG, or, for a name that ends in .html, as a page with its numbers."""
        path = Path(path).expanduser()
        if path.suffix not in (".svg", ".html"):
            raise VllmNbError(f"{path}: the name has to end in .svg or .html, which says what is written")
        path.write_text(str(self.picture()) if path.suffix == ".svg" else self._html(), encoding="utf-8")
        return path

    def _html(self) -> str:
        with self.player.lock:
            state = self.look(self.player.view)
        return f'<figure class="vllm-nb">{self.draw(state)}{self.numbers(state)}</figure>'

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle = super()._repr_mimebundle_(**options)
        assert bundle is not None  # only of a widget without a view
        return bundle[0] | {"text/html": self._html()}, bundle[1]

    def __repr__(self) -> str:
        transport = self.player.transport()
        return f"<{type(self).__name__} of {transport['model']}, step {transport['step']} of {transport['last']}>"

    def close(self) -> None:
        """Take the panel out of all pages; the last one of an engine that closes stops following it."""
        super().close()
        if self.player.remove(self) and isinstance(self.timeline, LiveTimeline):
            self.timeline.close()


def panel_of(timeline: Timeline, kind: type[Panel]) -> Panel:
    """The one panel of that kind of the timeline's one player; a new one where it was closed."""
    player = timeline.player = timeline.player or Player(timeline)
    known = [screen for screen in player.screens if isinstance(screen, kind)]
    return known[0] if known else kind(player)
