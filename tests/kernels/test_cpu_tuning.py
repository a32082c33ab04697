"""What suits a kind of processor must not matter to what is computed: the other kind's way, run here."""

import subprocess
import sys

import pytest
import torch

from tests.kernels.test_cpu_attention import Pages
from vllm_nb.kernels import cpu
from vllm_nb.kernels.cpu import isa, library, tuning
from vllm_nb.kernels.cpu.backend import state

KERNELS = ("attention_int8", "linear_q4_min", "linear_q6")
BUILD = """
import sys
from vllm_nb.kernels.cpu import tuning
way = getattr(tuning, sys.argv.pop(1))
tuning.tuning = lambda: way
from vllm_nb.kernels.cpu.native.build import main
main(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def other_kernels(tmp_path_factory):
    """The addresses of kernels that are compiled as for the other kind."""
    folder = tmp_path_factory.mktemp("kernels")
    other = "INTEL" if isa.is_amd() else "AMD"
    subprocess.run([sys.executable, "-c", BUILD, other, state().isa.name, str(folder), *KERNELS], check=True)
    return library._link({name: (folder / f"{name}.o").read_bytes() for name in KERNELS})


def results(random_blocks) -> list[torch.Tensor]:
    found = []
    pages = Pages([700, 40, 17, 1], 9, 3, 64, torch.int8)
    found += [pages.attend(cpu, [0, 1, 2, 3], counts, pages.lengths) for counts in ([1, 1, 1, 1], [300, 40, 1, 1])]
    found.append(pages.attend(cpu, [0], [1], [700]))
    for weight in (random_blocks("Q4_1", 80, 768), random_blocks("Q6_K", 80, 768)):
        packed = cpu.pack([weight], dtype=torch.bfloat16, device="cpu")
        x = torch.randn(40, 768, generator=torch.Generator().manual_seed(3))
        found += [cpu.linear(x[:rows].clone(), packed) for rows in (1, 2, 4, 8, 13, 40)]
    return found


def test_the_other_kinds_way_gives_the_same_bits(other_kernels, random_blocks, monkeypatch):
    expected = results(random_blocks)
    mine = state().library
    assert set(KERNELS) <= set(mine._addresses)  # all of them ran
    for name, address in other_kernels.items():
        monkeypatch.setitem(mine._addresses, name, address)
    for theirs, ours in zip(results(random_blocks), expected, strict=True):
        assert torch.equal(theirs, ours)


@pytest.mark.parametrize(("features", "kind"), [({"sse4a", "avx2"}, "AMD"), ({"avx2"}, "INTEL"), (set(), "INTEL")])
def test_the_kind_goes_by_the_processor(monkeypatch, features, kind):
    monkeypatch.setattr(isa, "host_features", lambda: frozenset(features))
    assert tuning.tuning() is getattr(tuning, kind)
