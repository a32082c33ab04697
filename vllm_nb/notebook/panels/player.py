"""The moment that the panels of one timeline show: they follow the engine, or play, halt and seek, all together.

A thread of the player's own brings the moment forward and asks each panel for a frame, at most ten times a second and
only while somebody sees it. It sets traits and sends messages, nothing else.
"""

import threading
import time
import weakref
from typing import Any, Protocol

from vllm_nb.inspection.follow import LiveTimeline
from vllm_nb.inspection.timeline import Timeline
from vllm_nb.inspection.view import EngineView

FRAME = 0.1  # seconds between two frames, at least
BYTES_PER_SECOND = 120_000  # to the browser, of all panels together; Jupyter begins to drop at a million
SPEEDS = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
_IDLE = 1.0  # seconds between two looks at whether anybody looks
LONGEST_WAIT = 1.0  # seconds of a recording in which nothing happens that are played as such


class Screen(Protocol):
    """A panel, as the player knows it."""

    visible: bool  # somebody looks

    def is_ready(self, now: float) -> bool:
        """Whether it takes another frame: the last ones have been drawn, or should have been."""

    def show(self, player: "Player", moved: bool) -> int:
        """Show the player's moment. moved: not forward from the last one, but to any other. Returns bytes sent."""

    def fail(self, error: Exception) -> None:
        """Say why the moment is not shown here any more."""


class Player:
    """What is shown of `timeline`. All methods may be called from any thread."""

    def __init__(self, timeline: Timeline):
        self.timeline = timeline
        self.view: EngineView = timeline.end
        self.following = isinstance(timeline, LiveTimeline)  # the newest moment, whatever comes
        self.playing = self.following
        self.speed = 1.0
        self.lock = threading.RLock()
        self._clock = self.view.time  # of the engine, at the moment shown
        self._screens: weakref.WeakSet[Screen] = weakref.WeakSet()
        # Those whose picture is old; True: also of another time, so that what has changed since says nothing.
        self._stale: weakref.WeakKeyDictionary[Screen, bool] = weakref.WeakKeyDictionary()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    # Transport

    def play(self) -> None:
        """Go on from here; from the end of a recording, from its beginning."""
        with self.lock:
            if self.view.step >= self.timeline.steps.stop - 1 and not self.is_live:
                self._go(self.timeline.steps.start)
            self.playing = True
        self.refresh()

    def halt(self) -> None:
        """Stay at this moment; a live engine goes on nevertheless."""
        with self.lock:
            self.playing = self.following = False
        self.refresh()

    def follow(self) -> None:
        """Show the newest moment, and what comes."""
        with self.lock:
            self._go(None)
            self.following = self.playing = self.is_live
        self.refresh()

    def seek(self, step: int) -> None:
        """Halt at the end of a step; one that is not there means the nearest that is."""
        with self.lock:
            self.playing = self.following = False
            self._go(step)
        self.refresh()

    def set_speed(self, speed: float) -> None:
        """Play so many times as fast as it was. Raises ValueError for one that is not in SPEEDS."""
        if speed not in SPEEDS:
            raise ValueError(f"speed must be one of {', '.join(f'{s:g}' for s in SPEEDS)}, not {speed!r}")
        with self.lock:
            self.speed = speed
        self.refresh()

    @property
    def is_live(self) -> bool:
        return isinstance(self.timeline, LiveTimeline) and self.timeline.error is None

    def transport(self) -> dict[str, Any]:
        """What the transport bar shows."""
        steps = self.timeline.steps
        error = self.timeline.error if isinstance(self.timeline, LiveTimeline) else None
        return {
            "live": self.is_live,
            "following": self.following,
            "playing": self.playing,
            "speed": self.speed,
            "step": self.view.step,
            "first": steps.start,
            "last": steps.stop - 1,
            "paused": self.view.paused,
            "lost": self.timeline.lost,
            "error": "" if error is None else str(error),
            "model": self.timeline.info.model,
        }

    # Screens

    def add(self, screen: Screen) -> None:
        """Show the moment on this screen too."""
        with self.lock:
            self._screens.add(screen)
            if self._thread is None:
                thread = threading.Thread(target=_run, args=(weakref.ref(self),), name="vllm-nb-player", daemon=True)
                self._thread = thread
                thread.start()
        self.refresh(screen)

    def remove(self, screen: Screen) -> bool:
        """Show it there no more. Returns whether it was the last."""
        with self.lock:
            self._screens.discard(screen)
            self._stale.pop(screen, None)
            return not self._screens

    @property
    def screens(self) -> list[Screen]:
        """What the moment is shown on."""
        return list(self._screens)

    def wake(self) -> None:
        """Look at once whether there is something to show."""
        self._wake.set()

    def refresh(self, screen: Screen | None = None) -> None:
        """Show the moment anew, on one screen or on all."""
        with self.lock:
            for each in self._screens if screen is None else [screen]:
                self._stale.setdefault(each, False)
        self.wake()

    @property
    def is_watched(self) -> bool:
        """Whether anybody looks at any screen."""
        return any(screen.visible for screen in list(self._screens))

    def tick(self, elapsed: float) -> int:
        """Bring the moment forward by that many seconds and show it where it is seen. Returns bytes sent."""
        with self.lock:
            self._advance(elapsed)
            now, sent = time.monotonic(), 0
            for screen in list(self._screens):
                if screen in self._stale and screen.visible and screen.is_ready(now):
                    sent += self._show(screen, self._stale.pop(screen))
            return sent

    def _show(self, screen: Screen, moved: bool) -> int:
        try:
            return screen.show(self, moved)
        except Exception as error:  # one that cannot draw says so, and does not hold up the others
            self.remove(screen)
            screen.fail(error)
            return 0

    def catch_up(self) -> None:
        """To the newest moment, where that is what is shown, without waiting for the next frame."""
        with self.lock:
            if self.following:
                self._advance(0.0)

    def _advance(self, elapsed: float) -> None:
        before = self.view.offset
        if self.following:
            self._go(None)
        elif self.playing:
            self._play(elapsed)
        if self.view.offset != before:
            self.refresh()

    def _play(self, elapsed: float) -> None:
        steps = self.timeline.steps
        self._clock += elapsed * self.speed
        following = self.timeline.time_of(min(self.view.step + 1, steps.stop - 1))
        self._clock = max(self._clock, following - LONGEST_WAIT)
        self._go(max(self.timeline.step_at(self._clock), self.view.step), keep_clock=True)
        if self.view.step >= steps.stop - 1:
            self.following = self.playing = self.is_live

    def _go(self, step: int | None, *, keep_clock: bool = False) -> None:
        """To the end of a step, or to the newest moment."""
        try:
            self.timeline.advance(self.view, step)
        except ValueError:  # back, or the timeline does not reach so far back any more
            self.view = self.timeline.end if step is None else self.timeline.near(step)
            self._stale.update(dict.fromkeys(self._screens, True))
        if not keep_clock:
            self._clock = self.view.time


def _run(reference: "weakref.ref[Player]") -> None:
    """The player's thread; it ends with the player."""
    last, pause = time.monotonic(), FRAME
    while (player := reference()) is not None:
        now = time.monotonic()
        sent = player.tick(now - last)
        last, pause = now, max(FRAME, sent / BYTES_PER_SECOND)
        wake, idle = player._wake, not player.is_watched
        wake.clear()
        del player
        if idle:
            wake.wait(_IDLE)
        time.sleep(pause)
