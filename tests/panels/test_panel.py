"""Panels without a browser: they show the player's moment, and frames stop when nobody looks or draws."""

import xml.etree.ElementTree as ET

import pytest

from vllm_nb.errors import VllmNbError
from vllm_nb.notebook.panels.panel import IN_FLIGHT


@pytest.fixture
def paging(timeline):
    panel = timeline.panel("paging")
    with panel.player.lock:  # its thread waits: the tests make the frames
        yield panel


def tell(panel, **content):
    """As the browser does."""
    panel._handle_custom_msg(content, [])


def test_there_is_one_panel_of_a_kind_for_a_timeline(timeline, paging):
    assert timeline.panel("paging", sequence=None) is paging
    paging.close()
    assert timeline.panel("paging") is not paging


def test_frames_go_only_to_those_who_look(paging):
    player = paging.player
    before = paging.frame
    player.seek(5)
    assert player.tick(0.1) == 0
    tell(paging, type="seen", view="a", number=1, visible=True)
    assert player.tick(0.1) > 0
    assert (paging.frame, paging.state["step"]) == (before + 1, 5)
    tell(paging, type="seen", view="a", number=2, visible=False)
    player.seek(6)
    assert player.tick(0.1) == 0


def test_a_word_of_the_page_that_was_overtaken_does_not_count(paging):
    tell(paging, type="seen", view="a", number=2, visible=True)
    tell(paging, type="seen", view="a", number=1, visible=False)
    assert paging.visible


def test_who_shows_a_panel_looks_at_it_until_the_page_says_more(paging):
    """A front end without subshells cannot say anything while the cell runs that shows the panel."""
    paging._repr_mimebundle_()
    paging.player.seek(5)
    assert paging.player.tick(0.1) > 0
    tell(paging, type="seen", view="a", number=1, visible=False)
    paging.player.seek(6)
    assert paging.player.tick(0.1) == 0


def test_a_panel_that_cannot_draw_says_so_and_the_others_go_on(timeline, paging, monkeypatch):
    throughput = timeline.panel("throughput")
    monkeypatch.setattr(paging, "look", lambda view: {}[view.step])
    for panel in (paging, throughput):
        tell(panel, type="seen", view="a", number=1, visible=True)
    paging.player.seek(5)
    before = throughput.frame
    paging.player.tick(0.1)
    assert throughput.frame == before + 1
    assert paging.transport["error"] == "this panel has failed: KeyError(5)"
    monkeypatch.undo()
    assert timeline.panel("paging") is not paging  # shown again, it is a new one


def test_no_frame_is_sent_while_others_wait_to_be_drawn(paging):
    tell(paging, type="seen", view="a", number=1, visible=True)
    tell(paging, type="drawn", frame=paging.frame)
    for step in range(1, 20):
        paging.player.seek(step)
        paging.player.tick(0.1)
    assert paging.frame - paging._drawn == IN_FLIGHT
    tell(paging, type="drawn", frame=paging.frame)
    paging.player.tick(0.1)
    assert paging.state["step"] == 19  # the newest, not the next


def test_the_buttons_move_the_player(paging, timeline):
    player = paging.player
    tell(paging, type="seek", step=3)
    assert player.view.step == 3
    tell(paging, type="play")
    assert player.playing
    tell(paging, type="speed", speed=10)
    for _ in range(1000):
        player.tick(1.0)
    assert player.view.books() == timeline.end.books()
    assert not player.playing
    tell(paging, type="play")  # from the beginning again
    assert player.view.step == timeline.steps.start
    tell(paging, type="halt")
    assert not player.playing


def test_playing_takes_the_time_it_took(paging, timeline):
    player = paging.player
    player.seek(2)
    player.play()
    start, end = timeline.time_of(2), timeline.time_of(timeline.steps.stop - 1)
    player.tick((end - start) / 2)
    assert timeline.time_of(player.view.step) <= (start + end) / 2 < timeline.time_of(player.view.step + 1)


def test_settings_and_names_are_checked(timeline, paging):
    with pytest.raises(VllmNbError, match=r"no panel 'kw'; there are .*paging"):
        timeline.panel("kw")
    with pytest.raises(VllmNbError, match=r"no setting 'sequins'; it has .*sequence"):
        paging.set(sequins=1)
    with pytest.raises(VllmNbError, match=r"\.svg or \.html"):
        paging.save("x.gif")


def test_a_picture_that_cannot_be_written(timeline, paging, tmp_path):
    for save, name in ((paging.save, "x.svg"), (paging.save, "x.html"), (timeline.to_chrome_trace, "x.json")):
        path = tmp_path / "missing" / name
        with pytest.raises(VllmNbError) as caught:
            save(path)
        assert str(caught.value) == f"cannot write {path}: there is no folder {path.parent}"
    (tmp_path / "x.svg").mkdir()
    with pytest.raises(VllmNbError, match=r"x\.svg: Is a directory"):
        paging.save(tmp_path / "x.svg")


def test_a_saved_picture_is_well_formed_whatever_the_texts(paging, timeline, tmp_path):
    for step in timeline.steps:
        paging.player.seek(step)
        ET.fromstring(str(paging.picture()))
    assert paging.save(tmp_path / "x.svg").read_text().startswith("<svg")
    assert "<table>" in paging.save(tmp_path / "x.html").read_text()


def test_a_reader_without_widgets_gets_picture_and_numbers(paging):
    data, _ = paging._repr_mimebundle_()
    assert "<svg" in data["text/html"]
    assert "<table>" in data["text/html"]
    assert "step" in data["text/plain"]
