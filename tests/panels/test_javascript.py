"""The panels' JavaScript: its logic with Node's own test runner, and the same numbers as Python's."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nb.notebook.chat_widget import UI
from vllm_nb.notebook.panels import memory
from vllm_nb.notebook.panels.bundle import STATIC, bundle
from vllm_nb.notebook.panels.svg import nice_ticks

TESTS = Path(__file__).parent / "js"
CASES = 50


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the modules and their tests, which Node takes for ES modules there."""
    folder = tmp_path_factory.mktemp("modules")
    for file in (*STATIC.glob("*.js"), *TESTS.glob("*.js")):
        shutil.copy(file, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


@pytest.fixture(scope="module")
def node(modules: Path) -> Callable[[str, Any], Any]:
    """node(program, value): what the program prints as JSON; it finds the value in `input`."""

    def run(program: str, value: Any) -> Any:
        source = f'import {{ readFileSync }} from "node:fs";\nconst input = JSON.parse(readFileSync(0));\n{program}'
        (modules / "program.js").write_text(source)
        done = subprocess.run(
            ["node", "program.js"], input=json.dumps(value), cwd=modules, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("file", sorted(path.name for path in TESTS.glob("*.js")))
def test_logic(file: str, modules: Path) -> None:
    done = subprocess.run(["node", "--test", file], cwd=modules, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "# pass 0" not in done.stdout


@pytest.mark.parametrize("file", [*sorted(STATIC.glob("*.js")), UI / "widget.js"], ids=lambda path: path.name)
def test_a_bundle_is_one_module_without_imports(file: Path, tmp_path: Path) -> None:
    """Also that no two of its parts use the same name."""
    module = bundle(file.name, file.parent)
    (tmp_path / "bundle.mjs").write_text(module)
    done = subprocess.run(["node", "--check", tmp_path / "bundle.mjs"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = module.splitlines()
    assert not [line for line in lines if line.startswith(("import ", "export ")) and "export default" not in line]


def test_ticks_are_those_of_the_static_pictures(node: Callable[[str, Any], Any]) -> None:
    tops = [1e-6, 0.003, 0.7, 1, 3.5, 10, 42, 99.9, 1000, 12345, 7e8]
    program = (
        'import { niceTicks } from "./charts.js";\nconsole.log(JSON.stringify(input.map((top) => niceTicks(top))));'
    )
    for ours, theirs in zip(map(nice_ticks, tops), node(program, tops), strict=True):
        assert theirs == pytest.approx(ours)


counts = st.integers(1, 2**36)
plans = st.fixed_dictionaries(
    {
        "device": st.fixed_dictionaries({"total": counts, "others": counts, "runtime": counts}),
        "activation_bytes": st.fixed_dictionaries(
            {name: st.integers(0, 2**20) for name in ("token", "row", "context")}
        ),
        "weight_bytes": st.fixed_dictionaries({"bfloat16": counts, "float32": counts}),
        "kv_token_bytes": st.fixed_dictionaries({"bfloat16": st.integers(1, 2**22), "float32": st.integers(1, 2**22)}),
        "max_num_batched_tokens": st.integers(1, 4096),
        "logits_beside": st.integers(0, 64),
    }
)
choices = st.fixed_dictionaries(
    {
        "context": st.integers(1, 2**17),
        "sequences": st.integers(1, 256),
        "dtype": st.sampled_from(["bfloat16", "float32"]),
        "block_size": st.sampled_from(memory.BLOCK_SIZES),
    }
)


def test_what_if_is_computed_alike(node: Callable[[str, Any], Any]) -> None:
    cases: list[tuple[Any, Any]] = []

    @settings(max_examples=CASES, database=None)
    @given(plans, choices)
    def collect(plan: Any, chosen: Any) -> None:
        cases.append((plan, chosen))

    collect()
    program = (
        'import { whatIf } from "./memory.js";\nconsole.log(JSON.stringify(input.map((each) => whatIf(...each))));'
    )
    assert node(program, cases) == [memory.what_if(*case) for case in cases]
