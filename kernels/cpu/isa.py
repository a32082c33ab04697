"""Instruction-set variants of the kernels: which ones this processor can run, and which is chosen.

Few operations differ between variants (`native/emit.py`): the dot products of bytes and of bfloat16 pairs, and the
byte look-up. All other vector code is plain LLVM, which lowers 16 lanes to whatever the processor has.
"""

import platform
from dataclasses import dataclass

import llvmlite.binding as llvm


@dataclass(frozen=True)
class Isa:
    """One variant. dot8: how bytes are multiplied ("vnni512", "vnni256", "avx2" or "plain"); dot_bf16: `vdpbf16ps`
    exists; needs: processor features (LLVM's names), one of each tuple."""

    name: str
    dot8: str
    dot_bf16: bool
    needs: tuple[tuple[str, ...], ...]


_X86_FLOATS = (("avx2",), ("fma",), ("f16c",))
_AVX512 = tuple((f"avx512{part}",) for part in ("f", "bw", "dq", "vl", "vnni"))

# best first
VARIANTS = (
    Isa("avx512-bf16", "vnni512", True, (*_X86_FLOATS, *_AVX512, ("avx512bf16",))),
    Isa("avx512", "vnni512", False, (*_X86_FLOATS, *_AVX512)),
    Isa("avx-vnni", "vnni256", False, (*_X86_FLOATS, ("avxvnni", "avx512vnni"), ("avxvnni", "avx512vl"))),
    Isa("avx2", "avx2", False, _X86_FLOATS),
    Isa("portable", "plain", False, ()),
)


def host_features() -> frozenset[str]:
    """The features LLVM finds on this processor, in its own names."""
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def host_name() -> str:
    """For humans: LLVM's name of the processor, and the architecture."""
    return f"{llvm.get_host_cpu_name()} ({platform.machine()})"


def available() -> list[Isa]:
    """The variants this processor can run, best first; never empty."""
    features = host_features()
    return [isa for isa in VARIANTS if all(any(name in features for name in names) for names in isa.needs)]


def named(name: str) -> Isa:
    """The variant of that name. ValueError if there is none, or if this processor cannot run it."""
    for isa in available():
        if isa.name == name:
            return isa
    known = ", ".join(isa.name for isa in available())
    raise ValueError(f"CPU kernels: no variant {name!r} on {host_name()}; it can run: {known}")
