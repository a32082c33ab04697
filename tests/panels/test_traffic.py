"""What panels send to the browser, and what they hold, while 64 requests run."""

import gc
import json
import threading
import time
import types

import pytest

from vllm_nb import event_reader
from vllm_nb.api import Engine
from vllm_nb.config import EngineConfig
from vllm_nb.engine import events as ring
from vllm_nb.events import dump, parse
from vllm_nb.inspection import follow, history
from vllm_nb.inspection.histories import history_of
from vllm_nb.inspection.timeline import FIRST_SPACING, MOST_KEYFRAMES, Timeline
from vllm_nb.notebook.panels import PANELS
from vllm_nb.sampling import SamplingParams

LIMIT = 200_000  # bytes a second


@pytest.fixture(scope="module")
def busy_engine(tiny_model_path):
    """64 requests that never end."""
    config = EngineConfig(max_num_seqs=64, num_kv_blocks=4000, dtype="float32", max_model_len=20_000)
    with Engine(tiny_model_path, config) as engine:
        params = SamplingParams(max_tokens=15_000, ignore_eos=True)
        streams = [engine.generate_stream(params, f"Request {i} of many") for i in range(64)]
        yield engine
        for stream in streams:
            stream.cancel()


class Page:
    """Counts what a panel publishes, and answers each frame as a browser does."""

    def __init__(self, panel):
        self.panel = panel
        self.bytes = self.frames = 0
        self.some = threading.Event()
        panel.comm.publish_msg = self.publish
        panel._handle_custom_msg({"type": "seen", "view": "a", "number": 1, "visible": True}, [])

    def publish(self, msg_type, data=None, metadata=None, buffers=None, **keys):
        self.bytes += len(json.dumps(data)) + sum(memoryview(buffer).nbytes for buffer in buffers or ())
        if "frame" in (data or {}).get("state", {}):
            self.frames += 1
            self.panel._handle_custom_msg({"type": "drawn", "frame": self.panel.frame}, [])
            if self.frames >= 10:
                self.some.set()


def test_all_panels_together_stay_below_the_limit(busy_engine):
    panels = [busy_engine.panel(name) for name in PANELS]
    start = time.monotonic()
    pages = [Page(panel) for panel in panels]
    page_of = dict(zip(PANELS, pages, strict=True))
    assert page_of["kv"].some.wait(60)
    seconds = time.monotonic() - start
    counted = {name: (page.bytes, page.frames) for name, page in page_of.items()}
    for panel in panels:
        panel.close()
    assert sum(size for size, _ in counted.values()) / seconds < LIMIT, counted
    assert all(frames <= 10 * seconds + 2 for _, frames in counted.values()), counted


def test_a_hidden_panel_sends_nothing(busy_engine):
    panel = busy_engine.panel("kv")
    page = Page(panel)
    assert page.some.wait(60)
    with panel.player.lock:
        panel._handle_custom_msg({"type": "seen", "view": "a", "number": 2, "visible": False}, [])
        before = page.frames
    step = panel.player.timeline.steps.stop
    for batch in busy_engine.events():  # the engine works on, and the timeline with it
        if any(getattr(event, "step", 0) > step + 20 for event in batch.events):
            break
    assert page.frames == before
    panel.close()
    assert panel.player.timeline.ended


def test_a_long_life_is_kept_within_bounds(busy_engine):
    """An hour, shortened: four times as many events as are kept."""
    batches = busy_engine.events()
    timeline = Timeline(next(batches), most_events=2000)
    start = timeline.end.offset
    longest = 0
    for batch in batches:
        timeline.extend(batch)
        longest = max(longest, len(timeline) - len(batch.events))
        if timeline.end.offset - start > 8000:
            break
    assert longest <= 2000 + FIRST_SPACING
    assert len(timeline._keyframes) <= MOST_KEYFRAMES
    assert len(timeline._steps) == len(timeline._ends) == len(timeline._times) <= len(timeline)
    first, last = timeline.steps.start, timeline.steps.stop - 1
    assert first > 0
    assert timeline.at(first).step == first
    assert timeline.at(last).step == last
    view = timeline.at(first)
    timeline.advance(view)
    assert view.books() == timeline.end.books()


class Wire(Engine):
    """An engine whose events reach its watchers as those of another process do: written, sent, read."""

    def events(self, offset=None, *, follow=True):
        for batch in super().events(offset, follow=follow):
            yield parse(dump(batch))


def held(*roots, beside):
    """How many objects are reachable from these, but for those through `beside`, types, modules, code and threads."""
    other = (type, types.ModuleType, types.FunctionType, types.MethodType, types.FrameType, threading.Thread)
    seen = {id(each) for each in beside}
    left, count = list(roots), 0
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, other):
            continue
        seen.add(id(each))
        count += 1
        left += gc.get_referents(each)
    return count


def test_what_watching_holds_does_not_grow(tiny_model_path, monkeypatch):
    """Half an hour, shortened: all bounds of the chain from the engine's ring to the panels are made small and reached,
    and what comes then leaves it as large as it was."""
    monkeypatch.setattr(ring, "CAPACITY", 2000)
    monkeypatch.setattr(event_reader, "MOST", 500)
    monkeypatch.setattr(follow, "MOST_EVENTS", 4000)
    monkeypatch.setattr(history, "MOST_STEPS", 60)
    config = EngineConfig(max_num_seqs=32, num_kv_blocks=300, dtype="float32")
    params = SamplingParams(max_tokens=6, logprobs=2, ignore_eos=True)
    with Wire(tiny_model_path, config) as engine:
        panels = [engine.panel(name) for name in PANELS]
        pages = [Page(panel) for panel in panels]
        timeline, player = panels[0].timeline, panels[0].player

        def requests(waves):
            """What is held after each of the last six: it swings, as much is dropped at once."""
            sizes = []
            for left in range(waves, 0, -1):
                engine.generate(params, [f"Question {i} of wave {left}" for i in range(32)])
                newest = engine.view().step
                while timeline.steps.stop <= newest:
                    time.sleep(0.01)
                with player.lock:
                    known = history_of(timeline)  # made for the panels, and kept beside them
                    if left > 6:
                        continue
                    player.follow()
                    player.tick(0.1)
                    sizes.append(held(*panels, timeline, player, known, beside=[engine, *pages]))
            return max(sizes)

        first = requests(26)
        assert timeline.first > 0  # the bounds have been reached
        assert requests(14) <= 1.03 * first
        kept = engine._loop.ring
        assert len(kept._events) == 2000 < kept.end - kept.start
        assert len(timeline) <= 4000 + FIRST_SPACING
        for panel in panels:
            panel.close()
