"""The KV map without a browser: what has been sent adds up to the state, whatever was skipped or lost."""

import xml.etree.ElementTree as ET
from array import array

import pytest
from traitlets import TraitError

from vllm_nb.inspection.cells import cells_of


class Browser:
    """What a page has of the panel: the trait when it was opened, then the messages."""

    def __init__(self, panel, monkeypatch):
        self.panel = panel
        self.bytes = 0
        self.open()
        monkeypatch.setattr(panel, "send", self.receive)
        self.tell(type="seen", view="a", number=1, visible=True)

    def open(self):
        cells = self.panel.get_state("cells")["cells"]
        self.cells, self.frame = array("I", bytes(cells["view"])), cells["frame"]

    def tell(self, **content):
        self.panel._handle_custom_msg(content, [])

    def receive(self, content, buffers):
        if content["previous"] > self.frame and len(buffers[0]) < 4 * len(self.cells):
            self.tell(type="cells")
        blocks, values = (array("I", bytes(buffer)) for buffer in buffers)
        self.bytes += 8 * len(blocks)
        for block, cell in zip(blocks, values, strict=True):
            self.cells[block] = cell
        self.frame = content["frame"]

    def tick(self):
        self.tell(type="drawn", frame=self.panel.frame)
        self.panel.player.tick(0.1)


@pytest.fixture
def kv(timeline):
    panel = timeline.panel("kv")
    with panel.player.lock:  # its thread waits: the tests make the frames
        yield panel


def test_the_messages_add_up(kv, timeline, monkeypatch):
    browser = Browser(kv, monkeypatch)
    steps = timeline.steps
    for step in [*range(0, steps.stop, 3), 50, 2, steps.stop - 1, 7]:  # also backwards
        kv.player.seek(step)
        browser.tick()
        assert browser.cells == cells_of(timeline.at(step))


def test_a_page_that_opens_late_has_everything(kv, timeline, monkeypatch):
    browser = Browser(kv, monkeypatch)
    kv.player.seek(20)
    browser.tick()
    browser.open()
    assert browser.cells == cells_of(timeline.at(20))
    kv.player.seek(21)
    browser.tick()
    assert browser.cells == cells_of(timeline.at(21))


def test_a_page_that_missed_a_message_gets_all_cells(kv, timeline, monkeypatch):
    browser = Browser(kv, monkeypatch)
    receive = browser.receive
    monkeypatch.setattr(kv, "send", lambda content, buffers: None)
    for step in (10, 30):
        kv.player.seek(step)
        browser.tick()
    monkeypatch.setattr(kv, "send", receive)
    kv.player.seek(60)
    browser.tick()
    assert browser.cells == cells_of(timeline.at(60))


def test_what_is_said_of_a_block(kv, timeline):
    view = timeline.at(40)
    kv.player.seek(40)
    block = next(iter(view.sharers))
    kv.set(block=block)
    chosen = kv.look(kv.player.view)["chosen"]
    assert chosen["references"] == len(chosen["holders"]) > 1
    assert "The same" in chosen["text"]
    assert chosen["chain"][0] == chosen["hash"] == view.stored[block].hash
    with pytest.raises(TraitError, match="block must be from 0 to 23, not 24"):
        kv.block = 24


def test_the_picture_shows_each_kind_of_block(kv, timeline):
    step = next(s for s in timeline.steps if timeline.at(s).sharers and timeline.at(s).num_cached_free)
    kv.player.seek(step)
    kv.sequence = kv.player.view.running[0]
    picture = str(kv.picture())
    ET.fromstring(picture)
    for words in ("hatch-", "shared, ", "free, in the prefix cache", "just written", "<polyline"):
        assert words in picture


def test_a_large_cache_is_a_small_picture(kv):
    from vllm_nb.notebook.panels.kv import _runs, layout

    columns, side = layout(100_000, 736)
    assert side == 4
    assert len(_runs(array("I", [1 << 16 | 1 << 8]) * 100_000, columns)) <= 100_000 / columns + 1
