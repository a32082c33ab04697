"""The history of a timeline, made once for all who look at it."""

import weakref

from vllm_nb.inspection.history import History
from vllm_nb.inspection.timeline import Timeline

_KNOWN: "weakref.WeakKeyDictionary[Timeline, History]" = weakref.WeakKeyDictionary()


def history_of(timeline: Timeline) -> History:
    """Of all that has happened in it until now; the same object as long as no events were lost. Not thread-safe."""
    history = _KNOWN.get(timeline)
    if history is None or history.info is not timeline.info or history.offset < timeline.first:
        history = _KNOWN[timeline] = History(timeline.at(timeline.steps.start))
    for event in timeline.between(history.offset):
        history.apply(event)
    return history
