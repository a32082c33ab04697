"""Memory of a whole process that loads SmolLM2 and answers."""

import json
import subprocess
import sys

import pytest

# Not getrusage: the peak it gives a new process begins at that of the process it was forked from, here pytest.
_ANSWER = """
import json, re, sys
from vllm_nb import EngineBuilder, ModelRepo, SamplingParams
with EngineBuilder(ModelRepo.model_file(sys.argv[1])).with_config(backend=sys.argv[2]).build() as engine:
    output = engine.generate(SamplingParams(max_tokens=8, ignore_eos=True), ["Hello " * 300] * 8)
peak = re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())
print(json.dumps({"peak": int(peak[1]) * 1024, "answers": len(output)}))
"""


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_peak_while_answering(smollm2_path, backend):
    command = [sys.executable, "-c", _ANSWER, str(smollm2_path), backend]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["answers"] == 8
    assert result["peak"] <= 1.2e9
