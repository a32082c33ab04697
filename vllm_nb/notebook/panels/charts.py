"""Charts of the static pictures: lines over time, and histograms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_nb.notebook.panels.svg import Svg, nice_ticks

MARGIN = 44.0  # left of a chart, for the numbers on its axis
_BELOW = 20.0  # for those on the time axis


@dataclass(frozen=True)
class Line:
    """Values at equal distances; None leaves a gap."""

    name: str
    role: str
    values: Sequence[float | None]
    dash: str = ""


def line_chart(
    picture: Svg,
    x: float,
    y: float,
    width: float,
    height: float,
    title: str,
    lines: Sequence[Line],
    seconds: float,
    end: str = "now",
) -> None:
    """Lines over `seconds` up to `end`, at the right, from 0 upwards. The names stand above, each with its stroke."""
    known = [value for line in lines for value in line.values if value is not None]
    ticks = nice_ticks(max(known, default=0.0))
    left, top, right, bottom = x + MARGIN, y + 22, x + width, y + height - _BELOW
    picture.text(x, y + 10, title, size=12, bold=True)
    _legend(picture, right, y + 10, lines)
    for tick in ticks:
        level = bottom - tick / ticks[-1] * (bottom - top)
        picture.line(left, level, right, level, "grid")
        picture.text(left - 6, level + 4, number(tick), fill="muted", size=10, anchor="end")
    for line in lines:
        for points in _pieces(line.values, left, right, bottom, top, ticks[-1]):
            picture.polyline(points, line.role, dash=line.dash)
    if not seconds:
        picture.text((left + right) / 2, (top + bottom) / 2, "no step yet", fill="muted", size=10, anchor="middle")
        return
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        label = end if share == 1 else f"−{number((1 - share) * seconds)} s"
        picture.text(left + share * (right - left), bottom + 14, label, fill="muted", size=10, anchor=anchor)


def histogram(
    picture: Svg, x: float, y: float, width: float, height: float, title: str, role: str, data: dict[str, Any]
) -> None:
    """data: as inspection.rates.histogram gives it: edges in seconds, counts, and percentiles."""
    edges, counts = data["edges"], data["counts"]
    picture.text(x, y + 10, title, size=12, bold=True)
    top, bottom = y + 34, y + height - _BELOW
    picture.line(x, bottom, x + width, bottom, "grid")
    if not counts:
        picture.text(x, y + 26, "none yet", fill="muted", size=11)
        return
    marks = "  ".join(f"{name} {duration(data[name])}" for name in ("p50", "p90", "p99"))
    picture.text(x, y + 26, marks, fill="muted", size=11)
    step, most = width / len(counts), max(counts)
    for i, count in enumerate(counts):
        tall = count / most * (bottom - top)
        hint = f"{duration(edges[i])} to {duration(edges[i + 1])}: {count:,}"
        picture.rect(x + i * step + 0.5, bottom - tall, step - 1, tall, role, hint=hint)
    picture.text(x, bottom + 14, duration(edges[0]), fill="muted", size=10)
    picture.text(x + width, bottom + 14, duration(edges[-1]), fill="muted", size=10, anchor="end")


def number(value: float) -> str:
    """Short: 12.3k, 340, 0.5."""
    for limit, factor, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{significant(value / factor)}{unit}"
    return f"{value:.0f}" if value == round(value) else significant(value)


def duration(seconds: float | None) -> str:
    """ "3.2 ms", "1.25 s"; "–" where unknown."""
    if seconds is None:
        return "–"
    return f"{significant(seconds * 1e3)} ms" if seconds < 1 else f"{significant(seconds)} s"


def size(count: float) -> str:
    """Bytes: "3.4 GiB", "120 MiB"."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= factor:
            return f"{significant(count / factor)} {unit}"
    return f"{count:.0f} B"


def significant(value: float) -> str:
    """Three digits that matter, without zeros behind."""
    return f"{float(f'{value:.3g}'):.10g}"


def within(
    values: Sequence[float | None], lines: Sequence[Sequence[float | None]], times: float = 3.0
) -> list[float | None]:
    """Values that would dwarf the other lines, above `times` their peak, are left out."""
    peak = max((value for line in lines for value in line if value is not None), default=0.0)
    return [value if value is not None and value <= times * peak else None for value in values]


def _legend(picture: Svg, right: float, y: float, lines: Sequence[Line]) -> None:
    for line in reversed(lines):
        picture.text(right, y, line.name, size=11, anchor="end")
        right -= len(line.name) * 6.5 + 6
        picture.line(right - 18, y - 4, right, y - 4, line.role, width=2, dash=line.dash)
        right -= 32


def _pieces(
    values: Sequence[float | None], left: float, right: float, bottom: float, top: float, most: float
) -> list[list[tuple[float, float]]]:
    """The line's points, in pieces between its gaps."""
    pieces: list[list[tuple[float, float]]] = [[]]
    step = (right - left) / max(len(values) - 1, 1)
    for i, value in enumerate(values):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((left + i * step, bottom - value / most * (bottom - top)))
    return pieces
