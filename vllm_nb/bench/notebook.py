"""`vllm-nb bench notebook`: what a reader of a notebook waits for, each measured in a process that is new.

load_ext       %load_ext in an IPython that runs already
start          %vllm start of an engine that is not there, and then until the first token of a cell
reuse          %vllm start of one that is, in a new kernel
cell, HTTP     the same request of one token as a cell and over plain HTTP (http.client), in turn; medians
"""

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from vllm_nb.client import process
from vllm_nb.client.runtime_dir import ENVIRONMENT_NAME

# Runs in a kernel's place: an InteractiveShell whose display data goes nowhere.
_SHELL = """
import json, statistics, sys, time
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.display_pub = CapturingDisplayPublisher()
shell.displayhook.write_output_prompt = lambda: None

def seconds(cell):
    began = time.perf_counter()
    result = shell.run_cell(cell, silent=True)
    result.raise_error()
    return time.perf_counter() - began

model, requests = sys.argv[1], int(sys.argv[2])
found = {"load_ext": seconds("%load_ext vllm_nb"), "start": seconds(f"%vllm start {model}")}
"""

_FIRST_TOKEN = """
found["first_token"] = found["start"] + seconds("%%vllm --max-tokens 1 --temperature 0\\nHello;")
print(json.dumps(found))
"""

_OVERHEAD = """
import http.client

client = shell.magics_manager.registry["VllmMagics"]._session.engines.current.client
connection = http.client.HTTPConnection(client.url.removeprefix("http://"))
fields = {"model": client.model, "max_tokens": 1, "temperature": 0, "messages": [{"role": "user", "content": "Hello"}]}
headers = {"Authorization": f"Bearer {client.token}", "Content-Type": "application/json"}

def plain():
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(fields), headers)
    json.loads(connection.getresponse().read())
    return time.perf_counter() - began

cell = "%%vllm --max-tokens 1 --temperature 0\\nHello;"
plain(), seconds(cell)
pairs = [(seconds(cell), plain()) for _ in range(requests)]
found["cell"], found["http"] = map(statistics.median, zip(*pairs))
print(json.dumps(found))
"""


def run(model: str, requests: int) -> int:
    """Prints the table. The engine is one of its own, ended afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {ENVIRONMENT_NAME: os.path.join(folder, "runtime")}
        try:
            _measure(_FIRST_TOKEN, model, requests, environment)  # compiles kernels, fills the page cache
            _stop(environment)
            first = _measure(_FIRST_TOKEN, model, requests, environment)
            again = _measure(_OVERHEAD, model, requests, environment)
        finally:
            _stop(environment)
    _print(first, again)
    return 0


def _measure(script: str, model: str, requests: int, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-c", _SHELL + script, model, str(requests)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"the notebook's part failed: {done.stderr.strip() or done.stdout.strip()}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _stop(environment: dict[str, str]) -> None:
    before = os.environ.get(ENVIRONMENT_NAME)
    os.environ[ENVIRONMENT_NAME] = environment[ENVIRONMENT_NAME]
    try:
        process.stop(all=True)
    finally:
        if before is None:
            del os.environ[ENVIRONMENT_NAME]
        else:
            os.environ[ENVIRONMENT_NAME] = before


def _print(first: dict[str, Any], again: dict[str, Any]) -> None:
    rows = [
        ("%load_ext vllm_nb", f"{again['load_ext']:.3f} s"),
        ("%vllm start, a new engine", f"{first['start']:.2f} s"),
        ("... and a cell, to its first token", f"{first['first_token']:.2f} s"),
        ("%vllm start, reused in a new kernel", f"{again['start']:.3f} s"),
        ("a cell of one token", f"{again['cell'] * 1e3:.1f} ms"),
        ("the same over plain HTTP", f"{again['http'] * 1e3:.1f} ms"),
        ("what the magic adds", f"{(again['cell'] - again['http']) * 1e3:.1f} ms"),
    ]
    for what, value in rows:
        print(f"{what:<38}{value:>10}")
