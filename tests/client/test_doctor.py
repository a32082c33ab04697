"""`vllm-nb doctor` on this machine."""

import json
import re

import pytest

from vllm_nb import doctor
from vllm_nb.cli import main


@pytest.fixture
def findings(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VLLM_NB_RUNTIME_DIR", str(tmp_path / "run"))
    status = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == int(any(finding["advice"] for finding in found))
    return {finding["subject"]: finding for finding in found}


def test_says_what_was_chosen(findings):
    from vllm_nb.kernels import cpu

    chosen = cpu.describe()
    assert findings["CPU kernels"]["state"].startswith(f"{chosen['variant']}; possible here: ")
    assert findings["threads"]["state"].startswith(f"{chosen['threads']}, OpenMP: ")
    assert "SmolLM2" in findings["default model"]["state"]
    assert findings["engines"]["state"] == "none running"


def test_problems_come_with_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VLLM_NB_RUNTIME_DIR", str(tmp_path / "run"))

    def missing(package):
        raise doctor.PackageNotFoundError(package)

    monkeypatch.setattr(doctor, "EXAMINATIONS", (doctor._packages,))
    monkeypatch.setattr(doctor, "version", lambda package: "1.0" if package == "vllm-nb" else missing(package))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "pip install 'vllm-nb[lab]'" in shown
    assert "pip install numba" in shown


def test_a_path_can_be_copied_from_a_pipe_and_is_whole_in_a_terminal(monkeypatch, capsys):
    path = "/" + "/".join(f"a-folder-{i}" for i in range(20))
    monkeypatch.setattr(doctor, "EXAMINATIONS", (lambda: iter([doctor.Finding("default model", path)]),))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.split() == ["✓", "default", "model", path]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["doctor"]) == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert path in "".join(shown.split())
