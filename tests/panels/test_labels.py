"""No two texts of a static picture lie over each other, and none leaves its box."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from vllm_nb.notebook.panels import PANELS
from vllm_nb.notebook.panels.svg import CHARACTER, MONOSPACE

SVG = "{http://www.w3.org/2000/svg}"


def spans(picture: str) -> dict[float, list[tuple[float, float, str]]]:
    """Of each base line: where its texts begin and end."""
    lines: dict[float, list[tuple[float, float, str]]] = {}
    for text in ET.fromstring(picture).iter(f"{SVG}text"):
        words = text.text or ""
        character = MONOSPACE if text.get("font-family") == "monospace" else CHARACTER
        width = len(words) * float(text.get("font-size", 0)) * character
        x = float(text.get("x", 0)) - width * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor", "start")]
        lines.setdefault(float(text.get("y", 0)), []).append((x, x + width, words))
    return lines


@pytest.mark.parametrize("name", PANELS)
@pytest.mark.parametrize("step", [2, 5, 30, -1])
def test_labels_leave_each_other_room(timeline, name: str, step: int) -> None:
    panel = timeline.panel(name)
    panel.player.seek(timeline.steps[step])
    for line in spans(str(panel.picture())).values():
        for (_, end, before), (start, _, after) in pairwise(sorted(line)):
            assert end <= start + 0.01, (before, after)
