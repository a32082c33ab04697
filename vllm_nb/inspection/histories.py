"""The history of a timeline, made once for all who look at it."""

import weakref

from vllm_nb.inspection.history import History
from vllm_nb.inspection.timeline import Timeline

_KNOWN: "weakref.WeakKeyDictionary[Timeline, History]" = weakref.WeakKeyDictionary()


def history_of(timeline: Timeline) -> History:
    """Of all that has happened in it until now; the same object as long as no events were lost. Not thread-safe."""
    history = _KNOWN.get(timeline) or History(timeline.near(0))
    news = timeline.between(history.offset)
    while history.info is not timeline.info or history.offset < timeline.first:  # asked afterwards: it grows meanwhile
        history = History(timeline.near(0))
        news = timeline.between(history.offset)
    for event in news:
        history.apply(event)
    _KNOWN[timeline] = history
    return history
