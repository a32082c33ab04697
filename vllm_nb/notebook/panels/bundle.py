"""One ES module from several: a widget's code reaches the browser as one text, with nothing to fetch from anywhere."""

import re
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"

_IMPORT = re.compile(r'^import \{[^}]*\} from "(?P<path>\.\.?/[\w./-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(async )?(function|const|class) )", re.MULTILINE)


@cache
def bundle(name: str, folder: Path = STATIC) -> str:
    """The module NAME of a folder with what it imports in front of it. Its parts share one scope: their names differ,
    which the tests check by loading every bundle."""
    parts = _parts((folder / name).resolve(), [])
    return "\n".join(_EXPORT.sub("", part) for part in parts)


def _parts(file: Path, done: list[Path]) -> list[str]:
    if file in done:
        return []
    done.append(file)
    source = file.read_text(encoding="utf-8")
    imported = [(file.parent / match["path"]).resolve() for match in _IMPORT.finditer(source)]
    before = [part for each in imported for part in _parts(each, done)]
    return [*before, f"// {file.name}\n{_IMPORT.sub('', source)}"]


@cache
def style(*names: str) -> str:
    """The CSS of these files in static/, below the colours of the theme."""
    from vllm_nb.notebook.panels.palette import theme_css

    return theme_css() + "\n".join((STATIC / name).read_text(encoding="utf-8") for name in names)
