"""What can be done with any engine that tells its events, in this process or in another."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_nb.events import Batch
from vllm_nb.inspection.follow import LiveTimeline, Recorder

if TYPE_CHECKING:
    from vllm_nb.notebook.panels.panel import Panel


class Observed(ABC):
    """An engine seen from outside."""

    @abstractmethod
    def events(self, offset: int | None = None, *, follow: bool = True) -> Generator[Batch, None, None]:
        """The event log in batches (docs/events.md), from event number `offset` on; None: from now, beginning with a
        snapshot. With `follow` for as long as the engine lives, an empty one twice a second when nothing happens;
        without, what there is. Raises EngineDeadError when the engine ends."""

    @abstractmethod
    def memory(self) -> dict[str, Any]:
        """Bytes by what they are for: "predicted" before the model was loaded, "measured" now."""

    @property
    @abstractmethod
    def read_rate(self) -> float:
        """Bytes a second that the engine's machine reads from memory, as it measured when first asked."""

    @abstractmethod
    def go_on(self, token_ids: list[int], **params: Any) -> None:
        """Answer a raw prompt, for those who watch: the answer itself is not returned. params: of SamplingParams."""

    def timeline(self) -> LiveTimeline:
        """Follow the engine from now on; `.at(step)` is the state after a step, `.close()` the end."""
        return LiveTimeline(self)

    def panel(self, name: str, **settings: Any) -> "Panel":
        """A live panel, by its name in docs/glossary.md: one of each kind for an engine, shown as often as you like."""
        from vllm_nb.notebook.panels import open_live_panel

        return open_live_panel(self, name, settings)

    @property
    def identity(self) -> str:
        """The same for everything that speaks of the same engine."""
        return f"{type(self).__name__} {id(self)}"

    def record(self, path: str | Path, *, overwrite: bool = False) -> Recorder:
        """Record all events into a file from now on; `.stop()` it, or use it with `with`. vllm_nb.replay reads it.

        overwrite: replace a recording that is there. Raises RecordingError, also where another file is there.
        """
        return Recorder(self, path, overwrite=overwrite)
