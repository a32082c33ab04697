"""What all panels of a timeline have in common: frames when somebody looks, and a transport bar."""

import json
import time
from typing import Any

from vllm_nb.inspection.follow import LiveTimeline
from vllm_nb.inspection.timeline import Timeline
from vllm_nb.inspection.view import EngineView
from vllm_nb.notebook.panels.picture import Picture
from vllm_nb.notebook.panels.player import Player

IN_FLIGHT = 2  # frames that may be on their way to the browser
OVERDUE = 0.2  # seconds after which a frame counts as lost: a kernel that is busy with a cell hears no answers
GONE = 30.0  # seconds without any answer after which the page was probably closed
SLOW = 5.0  # seconds between two frames then
_EXPECTED = "expected"  # the view that a display will open


class Panel(Picture):
    """A picture of one player's moment. A subclass says what it shows there (`look`)."""

    def __init__(self, player: Player):
        self.player = player
        self._views: dict[str, tuple[int, bool]] = {}  # in the browser: (number of its last word, whether it is seen)
        self._drawn = 0
        self._sent = self._answered = time.monotonic()
        super().__init__()
        with player.lock:
            self.show(player, moved=True)
        player.add(self)

    # What a subclass says

    def look(self, view: EngineView) -> dict[str, Any]:
        """The state at a moment."""
        raise NotImplementedError

    def part(self, state: dict[str, Any]) -> dict[str, Any]:
        """What travels anew with each frame; all of it where a panel does not send the rest in another way."""
        return state

    def now(self) -> dict[str, Any]:
        with self.player.lock:
            self.player.catch_up()
            return self.look(self.player.view)

    @property
    def timeline(self) -> Timeline:
        return self.player.timeline

    # A screen of the player

    @property
    def visible(self) -> bool:
        return any(seen for _, seen in list(self._views.values()))

    def is_ready(self, now: float) -> bool:
        overdue = SLOW if now - self._answered > GONE else OVERDUE
        return self.frame - self._drawn < IN_FLIGHT or now - self._sent > overdue

    def show(self, player: Player, moved: bool) -> int:
        """One message with all that has changed. Returns its size, about."""
        state, transport = self.part(self.look(player.view)), player.transport()
        self._sent = time.monotonic()
        if self.frame == self._drawn:
            self._answered = self._sent
        with self.hold_sync():
            self.state, self.transport = state, transport
            self.frame += 1
        return len(json.dumps(state))

    def fail(self, error: Exception) -> None:
        """Say why there will be no more frames."""
        self.transport = self.transport | {"error": f"this panel has failed: {error!r}"}

    # From the browser

    def expect_view(self) -> None:
        """The panel is being shown: somebody looks, until a page says otherwise. In a front end without subshells none
        can while the cell runs that shows it."""
        self._answered = time.monotonic()
        self._views[_EXPECTED] = (0, True)
        self.player.refresh(self)

    def _handle_msg(self, message: dict[str, Any]) -> None:
        """Any message, perhaps on a thread of the kernel's; not while a frame is being made, which sets traits too."""
        with self.player.lock:
            super()._handle_msg(message)

    def _receive(self, _: Any, content: dict[str, Any], buffers: list[Any]) -> None:
        self._answered = time.monotonic()
        player = self.player
        match content:
            case {"type": "drawn", "frame": int(frame)}:
                self._drawn = max(self._drawn, frame)
                player.wake()
            case {"type": "seen", "view": str(name), "number": int(number), "visible": bool(visible)}:
                self._views.pop(_EXPECTED, None)
                if number > self._views.get(name, (0, False))[0]:  # else it was overtaken on its way
                    self._views[name] = (number, visible)
                    player.refresh(self)
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

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        self.expect_view()
        return super()._repr_mimebundle_(**options)

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
