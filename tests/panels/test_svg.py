"""Static pictures are well-formed SVG that does not depend on a page, and say in words what they show."""

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_nb.notebook.panels.palette import COLOURS
from vllm_nb.notebook.panels.svg import Svg, nice_ticks, shortened, table

SVG = "{http://www.w3.org/2000/svg}"
printable = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"))
anything = st.text(st.characters(exclude_categories=()))


def drawn(picture: Svg) -> ET.Element:
    return ET.fromstring(str(picture))


@given(printable, printable)
def test_any_text_is_shown_as_it_is(title: str, text: str) -> None:
    picture = Svg(100, 50, title, text)
    picture.text(1, 2, text)
    picture.rect(0, 0, 5, 5, "series0", hint=text)
    root = drawn(picture)
    assert (root.findtext(f"{SVG}title") or "") == title
    assert (root.findtext(f"{SVG}desc") or "") == text
    assert root.findall(f"{SVG}text")[-1].text in (text, None)
    assert root.get("role") == "img"


@given(anything)
def test_no_text_breaks_the_picture(text: str) -> None:
    picture = Svg(100, 50, text, text)
    picture.text(1, 2, text)
    drawn(picture)


def test_colours_are_attributes_that_a_dark_page_repaints() -> None:
    picture = Svg(10, 10, "t", "d")
    picture.rect(0, 0, 5, 5, "series1", stroke="grid")
    rect = drawn(picture).findall(f"{SVG}rect")[-1]
    assert (rect.get("fill"), rect.get("stroke")) == (COLOURS["series1"][0], COLOURS["grid"][0])
    assert rect.get("class") == "fill-series1 stroke-grid"
    style = drawn(picture).findtext(f"{SVG}style")
    assert style.count(f".fill-series1{{fill:{COLOURS['series1'][1]}}}") == 2
    assert "series2" not in style


def test_hatches_are_defined_where_they_are_used_also_in_a_placed_picture() -> None:
    inner = Svg(10, 10, "t", "d")
    inner.rect(0, 0, 5, 5, inner.hatch("series2"))
    outer = Svg(20, 20, "t", "d")
    outer.place(inner, 3, 4)
    root = drawn(outer)
    assert root.find(f"{SVG}defs/{SVG}pattern").get("id") == "hatch-series2-45"
    assert root.find(f"{SVG}g/{SVG}rect").get("fill") == "url(#hatch-series2-45)"
    assert root.find(f"{SVG}g").get("transform") == "translate(3 4)"


@given(st.floats(1e-9, 1e12))
def test_ticks_are_round_reach_the_top_and_are_few(top: float) -> None:
    ticks = nice_ticks(top)
    assert ticks[0] == 0
    assert len(ticks) <= 6
    assert ticks[-1] >= top * (1 - 1e-9)
    assert len(ticks) == 2 or ticks[-2] < top
    assert f"{ticks[1]:.0e}"[0] in "125" or f"{ticks[1]:.1e}".startswith("2.5")


@pytest.mark.parametrize("top", [0.0, -1.0, float("nan")])
def test_nothing_has_ticks_too(top: float) -> None:
    assert nice_ticks(top) == [0.0, 1.0]


def test_long_texts_are_cut_and_tables_escape() -> None:
    assert shortened("abcdef", 4) == "abc…"
    assert shortened("abcd", 4) == "abcd"
    assert "<b>" not in table("<b>", ["<b>"], [["<b>"]])
    assert "<td>&lt;b&gt;</td>" in table("<b>", ["<b>"], [["<b>"]])
