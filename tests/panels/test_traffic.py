"""What panels send to the browser, and what they hold, while 64 requests run."""

import json
import threading
import time

import pytest

from vllm_nb.api import Engine
from vllm_nb.config import EngineConfig
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
