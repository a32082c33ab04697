"""Static pictures: SVG that reads anywhere, in GitHub's notebooks, an e-mail or Inkscape, and darkens on dark pages.

Colours are given by role (panels/palette.py). Each becomes a plain attribute, which every reader of SVG understands,
and a class, by which a style sheet in the picture repaints it on a dark page.
"""

from collections.abc import Iterable, Sequence
from html import escape

from vllm_nb.notebook.panels.palette import COLOURS, DARK_PAGES, SILENT_PAGES

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
CHARACTER = 0.56  # width of an average character, in font sizes
MONOSPACE = 0.602  # of each one in a monospaced font
Points = Sequence[tuple[float, float]]


class Svg:
    """A picture that is drawn from back to front. Lengths in pixels, the origin at the top left.

    title and description are what a screen reader says in its place.
    """

    def __init__(self, width: float, height: float, title: str, description: str):
        self.width, self.height = width, height
        self._title, self._description = title, description
        self._parts: list[str] = []
        self._patterns: dict[str, str] = {}

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        *,
        stroke: str | None = None,
        opacity: float = 1.0,
        radius: float = 0.0,
        hint: str = "",
    ) -> None:
        """hint: shown when the pointer rests on it. fill: a role, or what `hatch` returned."""
        size = f'x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0))}" height="{_n(max(height, 0))}"'
        corner = f' rx="{_n(radius)}"' if radius else ""
        self._add(f"<rect {size}{corner}{_paint(fill, stroke, opacity)}", "rect", hint)

    def line(
        self, x1: float, y1: float, x2: float, y2: float, stroke: str, *, width: float = 1.0, dash: str = ""
    ) -> None:
        ends = f'x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"'
        self._parts.append(f"<line {ends}{_paint(None, stroke)}{_pen(width, dash)}/>")

    def polyline(self, points: Points, stroke: str, *, width: float = 1.5, dash: str = "") -> None:
        """An open line. Fewer than two points draw nothing."""
        if len(points) > 1:
            path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
            self._parts.append(f'<polyline points="{path}"{_paint("none", stroke)}{_pen(width, dash)}/>')

    def ticks(self, xs: Iterable[float], y: float, height: float, stroke: str, *, width: float = 0.8) -> None:
        """Vertical strokes."""
        path = "".join(f"M{_n(x)} {_n(y)}v{_n(height)}" for x in xs)
        if path:
            self._parts.append(f'<path d="{path}"{_paint(None, stroke)}{_pen(width, "")}/>')

    def polygon(self, points: Points, fill: str, *, opacity: float = 1.0, hint: str = "") -> None:
        path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self._add(f'<polygon points="{path}"{_paint(fill, None, opacity)}', "polygon", hint)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        fill: str = "text",
        size: float = 12.0,
        anchor: str = "start",
        bold: bool = False,
        mono: bool = False,
        room: float | None = None,
    ) -> None:
        """y: of the base line. anchor: start, middle or end. room: pixels beyond which the text is cut, with a dot
        dot dot."""
        if room is not None:
            text = shortened(text, int(room / (size * (MONOSPACE if mono else CHARACTER))))
        style = ' font-weight="600"' if bold else ""
        style += ' font-family="monospace"' if mono else ""
        style += f' text-anchor="{anchor}"' if anchor != "start" else ""
        place = f'x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}"'
        self._parts.append(f"<text {place}{style}{_paint(fill, None)}>{escaped(text)}</text>")

    def hatch(self, role: str, angle: int = 45) -> str:
        """A fill of stripes in that colour."""
        name = f"hatch-{role}-{angle}"
        stripe = f'<rect width="2" height="5"{_paint(role, None)}/>'
        self._patterns[name] = (
            f'<pattern id="{name}" width="5" height="5" patternUnits="userSpaceOnUse" '
            f'patternTransform="rotate({angle})">{stripe}</pattern>'
        )
        return f"url(#{name})"

    def place(self, other: "Svg", x: float, y: float) -> None:
        """Draw another picture into this one."""
        self._patterns |= other._patterns
        self._parts.append(f'<g transform="translate({_n(x)} {_n(y)})">{"".join(other._parts)}</g>')

    def _add(self, start: str, tag: str, hint: str) -> None:
        self._parts.append(f"{start}><title>{escaped(hint)}</title></{tag}>" if hint else f"{start}/>")

    def __str__(self) -> str:
        definitions = f"<defs>{''.join(self._patterns.values())}</defs>" if self._patterns else ""
        body = "".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="vllm-nb-picture" role="img" font-family="{FONT}" '
            f'width="{_n(self.width)}" height="{_n(self.height)}" viewBox="0 0 {_n(self.width)} {_n(self.height)}">'
            f"<title>{escaped(self._title)}</title><desc>{escaped(self._description)}</desc>"
            f"<style>{_dark_style(body + definitions)}</style>{definitions}"
            f'<rect width="100%" height="100%"{_paint("page", None)}/>{body}</svg>'
        )


_UNSEEN = {code: 0x2400 + code for code in range(32)} | {0x7F: 0x2421, 0xFFFE: 0xFFFD, 0xFFFF: 0xFFFD}


def escaped(text: str) -> str:
    """Escaped, with a picture for each control character, which XML has no place for."""
    return escape(text.translate(_UNSEEN).encode(errors="replace").decode())


def text_width(text: str, size: float = 12.0) -> float:
    """About how wide the text will be: enough to place what stands beside it."""
    return len(text) * size * CHARACTER


def shortened(text: str, most: int) -> str:
    """At most so many characters, the last one an ellipsis where some are missing."""
    return text if len(text) <= most else text[: max(most - 1, 0)] + "…"


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """HTML: the numbers of a picture as a table that opens on demand, for those who cannot see it."""
    head = "".join(f'<th scope="col">{escaped(column)}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escaped(str(value))}</td>' for value in row)}</tr>" for row in rows)
    return (
        f"<details><summary>{escaped(caption)}</summary>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></details>"
    )


def nice_ticks(top: float, most: int = 5) -> list[float]:
    """0 and multiples of a round number until `top` is reached, no more than most + 1 of them."""
    if not top > 0:
        return [0.0, 1.0]
    step = 10.0 ** _exponent(top / most)
    step *= next(factor for factor in (1, 2, 2.5, 5, 10, 20) if factor * step * most >= top * (1 - 1e-9))
    count = 1
    while step * count < top * (1 - 1e-9):
        count += 1
    return [step * i for i in range(count + 1)]


def _exponent(value: float) -> int:
    """That of the largest power of ten up to `value`."""
    return int(f"{value:e}".partition("e")[2])


def _n(value: float) -> str:
    """A number as short as it looks the same."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _paint(fill: str | None, stroke: str | None, opacity: float = 1.0) -> str:
    """The attributes for roles, and the classes by which a dark page repaints them."""
    classes, attributes = [], ""
    for attribute, role in (("fill", fill), ("stroke", stroke)):
        if role in COLOURS:
            classes.append(f"{attribute}-{role}")
            attributes += f' {attribute}="{COLOURS[role][0]}"'
        elif role is not None:
            attributes += f' {attribute}="{role}"'
    if classes:
        attributes += f' class="{" ".join(classes)}"'
    return attributes + (f' opacity="{_n(opacity)}"' if opacity < 1 else "")


def _pen(width: float, dash: str) -> str:
    return f' stroke-width="{_n(width)}" stroke-linejoin="round"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _dark_style(body: str) -> str:
    """Dark colours for the roles that occur, as palette.theme_css chooses between light and dark."""
    painted = [
        (f".{attribute}-{role}", f"{{{attribute}:{dark}}}")
        for role, (_, dark) in COLOURS.items()
        for attribute in ("fill", "stroke")
        if f"{attribute}-{role}" in body or (attribute, role) == ("fill", "page")
    ]
    declared = "".join(f"{DARK_PAGES} .vllm-nb-picture {name}{rule}" for name, rule in painted)
    silent = "".join(f"{SILENT_PAGES} {name}{rule}" for name, rule in painted)
    return f"{declared}@media (prefers-color-scheme:dark){{{silent}}}"
