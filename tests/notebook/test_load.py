"""Loading the extension is light and silent, and can be undone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

HEAVY = (
    "torch",
    "numpy",
    "numba",
    "httpx",
    "fastapi",
    "pydantic",
    "transformers",
    "tokenizers",
    "jinja2",
    "rich",
    "psutil",
)

LOAD = f"""
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
before = set(sys.modules)
shell.run_line_magic("load_ext", "vllm_nb")
assert "vllm" in shell.magics_manager.magics["line"] and "vllm" in shell.magics_manager.magics["cell"]
import vllm_nb
dir(vllm_nb), vllm_nb.__doc__
heavy = sorted((set(sys.modules) - before) & set({HEAVY!r}))
assert not heavy, heavy
"""


def test_load_ext_imports_nothing_heavy_and_prints_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_public_name_is_there() -> None:
    import vllm_nb

    for name in vllm_nb.__all__:
        assert getattr(vllm_nb, name) is not None
        assert name in dir(vllm_nb)


def test_an_unknown_name_is_an_attribute_error() -> None:
    import vllm_nb

    with pytest.raises(AttributeError, match="module 'vllm_nb' has no attribute 'Engin'"):
        vllm_nb.Engin  # noqa: B018


def test_unload_takes_the_magics_away_and_load_brings_them_back(shell: InteractiveShell) -> None:
    shell.run_line_magic("unload_ext", "vllm_nb")
    assert shell.find_line_magic("vllm") is None
    assert shell.find_cell_magic("vllm") is None
    shell.run_line_magic("load_ext", "vllm_nb")
    assert shell.find_cell_magic("vllm") is not None


def test_help_of_the_magic_names_every_subcommand(shell: InteractiveShell) -> None:
    text = shell.find_line_magic("vllm").__doc__
    assert all(f"%vllm {name}" in text for name in ("start", "ps", "use", "stop", "logs"))


def test_the_help_that_the_readme_names_works_in_a_cell_of_its_own(run, capsys) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"`(%+vllm [^`]*-h)`", readme)
    assert lines
    for line in lines:
        assert run(line).success
        assert "--temperature X" in capsys.readouterr().out
