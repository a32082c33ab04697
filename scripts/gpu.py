"""All that needs an NVIDIA GPU, in two runs within a quarter of an hour: `python scripts/gpu.py test`, then `bench`.

Nothing is installed: the machine's own PyTorch, Triton and pytest are used, and this package from build/gpu. Every part
is a process of its own with a limit of its own, so one that fails or hangs does not cost the others' figures. After
each part are written to the folder $OUT (default build/gpu-report): gpu-RUN.log with what it printed, gpu-RUN.json with
all rows, and gpu-RUN.md, the tables for docs/gpu.md. A third word, tiny, checks a bench run itself where there is no
GPU: small shapes, interpreted.
"""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = ROOT / "build" / "gpu"
SECONDS = {"test": 380, "bench": 430}  # for all parts of a run, what matters most first
KERNEL_TESTS = {"attention", "linear", "sampling", "elementwise"}
TESTS = ("attention", "linear", "engine", "sampling", "elementwise", "compile")
TEST_SECONDS = 120
# name: (arguments, most seconds)
BENCHES: dict[str, tuple[list[str], int]] = {
    "steps-8b": (["bench", "--parts", "steps"], 100),
    "throughput": (["bench", "--parts", "throughput"], 100),
    "attention": (["bench", "--parts", "attention"], 90),
    "transformers": (["transformers"], 100),
    "products": (["bench", "--parts", "products"], 60),
    "elementwise": (["bench", "--parts", "elementwise", "sampling"], 50),
    "steps-0.6b": (["bench", "--parts", "steps", "--shapes", "qwen3-0.6b"], 50),
    "throughput-no-overlap": (["bench", "--parts", "throughput", "--no-overlap"], 80),
}
TINY = ["--shapes", "tiny", "--throughput-shapes", "tiny", "--requests", "3", "--sizes", "1x20"]


def install() -> None:
    """The package as an installation would lay it out, without pip or setuptools."""
    shutil.rmtree(INSTALLED, ignore_errors=True)
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "vllm_nb", INSTALLED / "vllm_nb", ignore=unwanted)
    shutil.copytree(ROOT / "kernels", INSTALLED / "vllm_nb" / "kernels", ignore=unwanted)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = INSTALLED / f"vllm_nb-{project['version']}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")


def command(arguments: list[str]) -> list[str]:
    python = [sys.executable, "-P"]
    if arguments[0] == "bench":
        return [*python, "-m", "vllm_nb.cli", "bench", "gpu", "--json", *arguments[1:]]
    if arguments[0] == "transformers":
        return [*python, str(ROOT / "scripts" / "bench_transformers.py")]
    files = [f"tests/kernels/triton/test_{name}.py" for name in arguments[1:]]
    workers = ["-n", "8"] if find_spec("xdist") and set(arguments[1:]) <= KERNEL_TESTS else []
    lenient = "addopts=-ra --import-mode=importlib"  # --strict-config would ask for pytest-timeout: parts have limits
    return [*python, "-m", "pytest", "-o", lenient, "-q", "--durations=5", "-p", "no:cacheprovider", *workers, *files]


def run(name: str, arguments: list[str], limit: float, log_file: Path) -> dict[str, Any]:
    """Run the command of a part, and say how it ended and which JSON lines it printed."""
    environment = {**os.environ, "PYTHONPATH": str(INSTALLED), "PYTHONUNBUFFERED": "1"}
    environment["PYTHONSAFEPATH"] = "1"  # what a test starts would find ROOT/vllm_nb first, which has no kernels
    environment.setdefault("TRITON_INTERPRET", "0")
    started = time.monotonic()
    print(f"{name} ...", flush=True)
    with log_file.open("a+") as log:
        begin = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
            ended = "ok" if code == 0 else f"exit status {code}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:.0f} s"
            os.killpg(process.pid, signal.SIGKILL)  # its own workers too
            process.wait()
        log.seek(begin)
        lines = log.read().splitlines()
    rows = [row for line in lines if line.startswith("{") and (row := _parsed(line)) is not None]
    summary = next(
        (line.strip("= ") for line in reversed(lines) if re.search(r"(passed|failed|error).* in ", line)), ""
    )
    part = {"part": name, "ended": ended, "seconds": round(time.monotonic() - started, 1), "summary": summary}
    part["rows"] = rows
    print(f"  {ended}, {part['seconds']} s  {summary}", flush=True)
    if ended != "ok":
        print("\n".join(f"  | {line[:200]}" for line in lines[-15:]), flush=True)
    return part


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def machine() -> dict[str, str]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        gpu = f"unknown: {error}"
    found = {"gpu": gpu, "python": platform.python_version(), "date": datetime.now(UTC).strftime("%Y-%m-%d")}
    for package in ("torch", "triton", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def markdown(facts: dict[str, str], parts: list[dict[str, Any]]) -> str:
    lines = [", ".join(f"{name} {value}" for name, value in facts.items()), ""]
    for part in parts:
        lines += [f"### {part['part']}: {part['ended']}, {part['seconds']} s {part['summary']}".rstrip(), ""]
        by_columns: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in part["rows"]:
            by_columns.setdefault(tuple(row), []).append(row)
        for columns, rows in by_columns.items():
            lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
            lines += ["| " + " | ".join("-" if row[c] is None else str(row[c]) for c in columns) + " |" for row in rows]
            lines.append("")
    return "\n".join(lines)


def main(which: str, tiny: bool = False) -> int:
    out = Path(os.environ.get("OUT") or ROOT / "build" / "gpu-report")
    out.mkdir(parents=True, exist_ok=True)
    install()
    end = time.monotonic() + SECONDS[which]
    wanted = BENCHES if which == "bench" else {f"test-{name}": (["tests", name], TEST_SECONDS) for name in TESTS}
    if tiny:
        os.environ["TRITON_INTERPRET"] = "1"
        wanted = {name: part for name, part in BENCHES.items() if name != "transformers"}
    facts, parts = machine(), []
    print(facts, flush=True)
    for name, (arguments, most) in wanted.items():
        limit = min(most, end - time.monotonic())
        if limit < 5:
            parts.append({"part": name, "ended": "not run: no time left", "seconds": 0, "summary": "", "rows": []})
            print(f"{name}: {parts[-1]['ended']}", flush=True)
        else:
            parts.append(run(name, command(arguments) + (TINY if tiny else []), limit, out / f"gpu-{which}.log"))
        (out / f"gpu-{which}.json").write_text(json.dumps({"machine": facts, "parts": parts}, indent=1))
        (out / f"gpu-{which}.md").write_text(markdown(facts, parts))
    print(f"written to {out}/gpu-{which}.md", flush=True)
    return int(any(part["ended"] != "ok" for part in parts))


if __name__ == "__main__":
    if sys.argv[1:] not in (["test"], ["bench"], ["bench", "tiny"]):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], tiny=sys.argv[2:] == ["tiny"]))
