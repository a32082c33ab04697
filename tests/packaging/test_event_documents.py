"""docs/events.md and docs/glossary.md say what the code says."""

import re
from importlib import import_module

import pytest

from vllm_nb import events
from vllm_nb.notebook.panels import PANELS


@pytest.fixture(scope="module")
def rows():
    def read(path) -> dict[str, list[str]]:
        found = [re.split(r"(?<!\\)\|", line)[1:-1] for line in path.read_text().splitlines() if line.startswith("| `")]
        return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in found}

    return read


def test_every_event_is_documented_with_its_fields(rows, root):
    documented = {name: re.findall(r"`(\w+)`", cells[0]) for name, cells in rows(root / "docs/events.md").items()}
    assert documented == {name: list(kind._fields) for name, kind in events.KINDS.items()}


def test_the_version_in_the_examples_is_the_one_written(root):
    versions = re.findall(r'"version": (\d+)', (root / "docs/events.md").read_text())
    assert set(versions) == {str(events.VERSION)}


def test_every_panel_is_in_the_glossary_with_its_title_and_files(rows, root):
    documented = rows(root / "docs/glossary.md")
    for name, place in PANELS.items():
        module, _, kind = place.partition(":")
        panel = getattr(import_module(f"vllm_nb.notebook.panels.{module}"), kind)
        title, _, files = documented[name]
        assert title == panel.title
        assert re.findall(r"`([\w/.]+)`", files) == [f"{module}.py", f"static/{panel.module}"]
    assert {name for name in documented if name in PANELS} == PANELS.keys()
