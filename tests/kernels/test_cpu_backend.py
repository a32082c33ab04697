"""Which kernels run: every variant this machine can run, the cache of compiled code, threads."""

import resource
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from vllm_nb.kernels import cpu
from vllm_nb.kernels.cpu import isa, library, selftest
from vllm_nb.kernels.cpu.backend import state
from vllm_nb.kernels.quant import dequantize


@pytest.fixture
def best_variant_afterwards():
    yield
    cpu.select(None)


@pytest.mark.usefixtures("best_variant_afterwards")
@pytest.mark.parametrize("variant", [found.name for found in isa.available()])
def test_every_variant_computes_the_same(variant, random_blocks, round_to_int8):
    """Products of bytes are exact, so all variants agree to the bit; bfloat16 products may round differently."""
    x = torch.randn(9, 256, generator=torch.Generator().manual_seed(0))
    raws = [random_blocks("Q8_0", 32, 256), random_blocks("IQ4_NL", 32, 256)]
    best = [cpu.linear(x, cpu.pack([raw], dtype=torch.float32, device="cpu")) for raw in raws]
    floats = torch.randn(32, 256, generator=torch.Generator().manual_seed(1))

    cpu.select(variant)
    assert cpu.describe()["variant"] == variant
    assert selftest.passes(state())
    for raw, expected in zip(raws, best, strict=True):
        weight = cpu.pack([raw], dtype=torch.float32, device="cpu")
        assert torch.equal(cpu.linear(x, weight), expected)
        assert torch.equal(cpu.linear(x[:1].clone(), weight), expected[:1])
        exact = round_to_int8(x.numpy()) @ dequantize(raw).double().numpy().T
        np.testing.assert_allclose(expected.numpy(), exact, rtol=1e-4, atol=1e-4)
    weight = cpu.pack([floats], dtype=torch.bfloat16, device="cpu")
    exact = x.bfloat16().double() @ floats.bfloat16().double().T
    together = cpu.linear(x, weight)
    torch.testing.assert_close(together.double(), exact, rtol=1e-4, atol=1e-4)
    for rows in (1, 3):
        assert torch.equal(cpu.linear(x[:rows].clone(), weight), together[:rows])


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match=r"no variant 'sse9'.*portable"):
        cpu.select("sse9")


@pytest.mark.usefixtures("best_variant_afterwards")
def test_a_variant_that_computes_wrongly_is_passed_over(monkeypatch):
    best, second = [found.name for found in isa.available()][:2]
    right = selftest.passes
    monkeypatch.setattr(selftest, "passes", lambda candidate: candidate.isa.name != best and right(candidate))
    cpu.select(None)
    with pytest.warns(UserWarning, match=f"variant {best} computes wrongly"):
        assert cpu.describe()["variant"] == second
    assert best in cpu.describe()["rejected"]


def test_the_self_test_sees_a_wrong_kernel():
    """The product of another format in the place of the one it uses."""
    chosen = state()
    broken = library.Library(chosen.isa)
    broken._addresses |= {name: chosen.library.address(name) for name in ("quantize", "linear_q4_min")}
    broken._addresses["linear_q8"] = broken.address("linear_q4_min")
    assert selftest.passes(chosen)
    assert not selftest.passes(type(chosen)(chosen.isa, broken, chosen.team))


def test_compiled_kernels_are_kept_with_progress(tmp_path, monkeypatch):
    """Wherever it is done: there may lie modules of any name."""
    (tmp_path / "token.py").write_text("raise SystemExit('my token.py was run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library, "_writable_root", lambda: tmp_path)
    seen = []
    first = library.Library(isa.available()[0])
    first.load(["gather_rows", "rms_norm"], lambda *report: seen.append(report))
    assert [report[1:] for report in seen] == [(0, 2), (1, 2), (2, 2)]
    assert all("Compiling CPU kernels" in report[0] for report in seen)

    seen.clear()
    second = library.Library(isa.available()[0])
    second.load(["gather_rows", "rms_norm"], lambda *report: seen.append(report))
    assert seen == []
    assert second.address("rms_norm") != first.address("rms_norm")


def test_a_failing_compiler_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "_writable_root", lambda: tmp_path)
    with pytest.raises(library.CompileError, match="no_such_kernel"):
        library.Library(isa.available()[0]).load(["no_such_kernel"])


def test_a_full_cache_folder_is_reported_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "_writable_root", lambda: tmp_path)
    kernels = library.Library(isa.available()[0])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # the compiler's process has it too
    try:
        with pytest.raises(library.CompileError) as caught:
            kernels.load(["rms_norm"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{kernels.folder} cannot take the compiled kernels" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert list(kernels.folder.iterdir()) == []


def test_the_cache_moves_where_it_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(library.platformdirs, "user_cache_dir", lambda *_, **__: str(tmp_path / "file" / "below"))
    monkeypatch.setattr(library.tempfile, "gettempdir", lambda: str(tmp_path))
    assert library.cache_folder(isa.available()[0]).is_relative_to(tmp_path)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_any_number_of_threads_gives_the_same_bits(threads, random_blocks):
    weight = cpu.pack([random_blocks("Q4_1", 100, 256)], dtype=torch.float32, device="cpu")
    x = torch.randn(70, 256)
    expected, before = cpu.linear(x, weight), cpu.describe()["threads"]
    cpu.set_threads(threads)
    try:
        assert cpu.describe()["threads"] == threads
        assert torch.equal(cpu.linear(x, weight), expected)
        assert torch.equal(cpu.linear(x[:1].clone(), weight), expected[:1])
    finally:
        cpu.set_threads(before)


def test_no_threads_is_refused():
    with pytest.raises(ValueError, match="at least 1 thread, not 0"):
        cpu.set_threads(0)


def test_callers_take_turns(random_blocks):
    """Several Python threads at once, as the engine's and a notebook's are."""
    weight = cpu.pack([random_blocks("Q8_0", 64, 256)], dtype=torch.float32, device="cpu")
    inputs = [torch.randn(5, 256) for _ in range(4)]
    expected = [cpu.linear(x, weight) for x in inputs]
    wrong = []

    def work(x, right):
        wrong.extend(1 for _ in range(50) if not torch.equal(cpu.linear(x, weight), right))

    workers = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_a_warm_start_loads_no_compiler():
    code = (
        "import sys, torch; from vllm_nb.kernels import cpu; cpu.prepare(lambda *r: sys.exit(f'compiled: {r}'));"
        "cpu.rms_norm(torch.ones(1, 16), torch.ones(16), 1e-5); print(sorted({'numba'} & set(sys.modules)))"
    )
    cpu.prepare()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
