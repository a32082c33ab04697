"""Colours: readable on their pages, and told apart by people with each of the common colour-blindnesses."""

import itertools
import re

import numpy as np
import pytest

from vllm_nb.notebook.panels.bundle import STATIC
from vllm_nb.notebook.panels.palette import COLOURS, SERIES, theme_css

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
THEMES = {"light": 0, "dark": 1}


def linear(colour: str) -> np.ndarray:
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB, D65."""
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.array(matrix) @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    f = np.array([v ** (1 / 3) if v > (6 / 29) ** 3 else v / (3 * (6 / 29) ** 2) + 4 / 29 for v in (x, y, z)])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio."""
    bright, dim = sorted((linear(c) @ [0.2126, 0.7152, 0.0722] for c in (one, other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_text_is_readable_and_marks_are_visible(theme: int) -> None:
    colour = {role: pair[theme] for role, pair in COLOURS.items()}
    for ground in ("page", "surface"):
        for role in ("text", "muted", "focus", "alert"):
            assert contrast(colour[role], colour[ground]) >= 4.5, (role, ground)
    for role in SERIES[:4]:
        assert contrast(colour[role], colour["page"]) >= 2.9, role
    for role in SERIES:
        assert contrast(colour[role], colour["page"]) >= 2, role


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_series_are_told_apart(theme: int, vision: str) -> None:
    seen = [lab(np.array(VISION[vision]) @ linear(COLOURS[role][theme])) for role in SERIES]
    near = [(i, j) for (i, a), (j, b) in itertools.combinations(enumerate(seen), 2) if np.linalg.norm(a - b) < 9]
    assert not near
    first = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen[:4], 2)]  # most panels need no more
    assert min(first) > 15


def test_css_has_every_colour_for_both_pages() -> None:
    css = theme_css()
    for role, (light, dark) in COLOURS.items():
        assert css.count(f"--vn-{role}: {light};") >= 1
        assert css.count(f"--vn-{role}: {dark};") >= 2


def test_no_panel_styles_what_another_one_shows() -> None:
    """All styles of a page are in force together: what two panels share stands in panel.css and transport.css."""
    owners: dict[str, set[str]] = {}
    for file in STATIC.glob("*.css"):
        for selector in re.findall(r"[^{}]+(?=\{)", file.read_text()):
            names = [selector.strip()]
            if file.name not in ("panel.css", "transport.css"):
                names += re.findall(r"\.vn-(?!panel\b)[\w-]+", selector)[-1:]
            for name in names:
                owners.setdefault(name, set()).add(file.name)
    assert {name: files for name, files in owners.items() if len(files) > 1} == {}
