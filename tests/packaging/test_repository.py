"""What must hold for the files of the repository, whatever they do."""

import re
from pathlib import Path

import pytest

MAX_LINES = 400

REGISTRIES = re.compile(
    r"pypi\.org|pythonhosted\.org|pytorch\.org/whl|npmjs\.|yarnpkg\.com|unpkg\.com|jsdelivr\.net|esm\.sh"
    r"|debian\.org|ubuntu\.com|anaconda\.org|crates\.io"
)
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:work|root|home|Users|opt/wheels|opt/pypi|tmp/plan)/")
AUTHORSHIP = re.compile(
    r"co-authored-by|(?:written|made) (?:by|with) (?:an? )?(?:ai\b|llm|language model)|\bsub-?agents?\b"
    r"|(?:written|generated|made) (?:by|with) (?:claude|chatgpt|gpt|copilot|gemini)",
    re.IGNORECASE,
)


def lines_of(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:  # a picture, a recording
        return []


@pytest.mark.parametrize("rule", [REGISTRIES, MACHINE_PATHS, AUTHORSHIP], ids=["registry", "machine path", "author"])
def test_no_file_names_what_does_not_belong(rule, repository_files, root):
    """No package registry's host, no path of one machine, nobody who did the work."""
    offences = [
        f"{path.relative_to(root)}:{number}: {line.strip()[:100]}"
        for path in repository_files
        if path != Path(__file__)
        for number, line in enumerate(lines_of(path), 1)
        if rule.search(line)
    ]
    assert not offences


def test_no_source_file_is_too_long_to_read(repository_files, root):
    lengths = {path: len(lines_of(path)) for path in repository_files if path.suffix in {".py", ".js"}}
    assert lengths, "no source files found"
    assert not {str(path.relative_to(root)): n for path, n in lengths.items() if n > MAX_LINES}


@pytest.mark.parametrize("name", ["README.md", "docs/cpu.md", "docs/events.md", "docs/glossary.md", "docs/gpu.md"])
def test_documents_fit_a_terminal(root, name):
    """But for tables and pictures, whose lines cannot be broken."""
    lines = lines_of(root / name)
    assert [line for line in lines if len(line) > 120 and not line.startswith(("|", "<img"))] == []


def test_every_test_file_is_collected(repository_files, root):
    """pytest finds test_*.py only: another name in tests/ would be a test that never runs."""
    named = [p for p in repository_files if p.is_relative_to(root / "tests") and p.suffix == ".py"]
    helpers = {"__init__.py", "conftest.py", "helpers.py"}
    assert not [str(p) for p in named if not p.name.startswith("test_") and p.name not in helpers]


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (REGISTRIES, "pip install --index-url https://pypi.org/simple x"),
        (MACHINE_PATHS, "see /home/someone/x"),
        (MACHINE_PATHS, "--find-links=/opt/wheels/"),
        (AUTHORSHIP, "Co-Authored-By: someone"),
        (AUTHORSHIP, "# written with an LLM"),
    ],
)
def test_the_rules_can_fail(rule, line):
    assert rule.search(line)
