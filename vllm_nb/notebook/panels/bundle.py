"""One ES module from several: a widget's code reaches the browser as one text, with nothing to fetch from anywhere."""

import re
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(?P<name>[\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(async )?(function|const|class) )", re.MULTILINE)


@cache
def bundle(name: str, folder: Path = STATIC) -> str:
    """The module NAME of a folder with what it imports in front of it. Its parts share one scope: their names differ,
    which the tests check by loading every bundle."""
    done: list[str] = []
    parts = _parts(name, folder, done)
    return "\n".join(_EXPORT.sub("", part) for part in parts)


def _parts(name: str, folder: Path, done: list[str]) -> list[str]:
    if name in done:
        return []
    done.append(name)
    source = (folder / name).read_text(encoding="utf-8")
    before = [part for match in _IMPORT.finditer(source) for part in _parts(match["name"], folder, done)]
    return [*before, f"// {name}\n{_IMPORT.sub('', source)}"]


@cache
def style(*names: str) -> str:
    """The CSS of these files in static/, below the colours of the theme."""
    from vllm_nb.notebook.panels.palette import theme_css

    return theme_css() + "\n".join((STATIC / name).read_text(encoding="utf-8") for name in names)
