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
    exists; pairs: products with bfloat16 weights use it; needs: processor features (LLVM's names), one of each
    tuple."""

    name: str
    dot8: str
    dot_bf16: bool
    pairs: bool
    needs: tuple[tuple[str, ...], ...]


_X86_FLOATS = (("avx2",), ("fma",), ("f16c",))
_AVX512 = tuple((f"avx512{part}",) for part in ("f", "bw", "dq", "vl", "vnni"))

_BF16 = (*_X86_FLOATS, *_AVX512, ("avx512bf16",))

# best first, where `vdpbf16ps` is fast
VARIANTS = (
    Isa("avx512-bf16", "vnni512", True, True, _BF16),
    Isa("avx512-bf16-fma", "vnni512", True, False, _BF16),
    Isa("avx512", "vnni512", False, False, (*_X86_FLOATS, *_AVX512)),
    Isa("avx-vnni", "vnni256", False, False, (*_X86_FLOATS, ("avxvnni", "avx512vnni"), ("avxvnni", "avx512vl"))),
    Isa("avx2", "avx2", False, False, _X86_FLOATS),
    Isa("portable", "plain", False, False, ()),
)


def host_features() -> frozenset[str]:
    """The features LLVM finds on this processor, in its own names."""
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def is_amd() -> bool:
    return "sse4a" in host_features()  # which no other has


def host_name() -> str:
    """For humans: LLVM's name of the processor, and the architecture."""
    return f"{llvm.get_host_cpu_name()} ({platform.machine()})"


def available() -> list[Isa]:
    """The variants this processor can run, best first; never empty."""
    features = host_features()
    found = [isa for isa in VARIANTS if all(any(name in features for name in names) for names in isa.needs)]
    # Intel's cores take longer for `vdpbf16ps` than for two float32 products
    if not is_amd() and len(found) > 1 and found[0].pairs:
        found[0], found[1] = found[1], found[0]
    return found


def named(name: str) -> Isa:
    """The variant of that name. ValueError if there is none, or if this processor cannot run it."""
    for isa in available():
        if isa.name == name:
            return isa
    known = ", ".join(isa.name for isa in available())
    raise ValueError(f"CPU kernels: no variant {name!r} on {host_name()}; it can run: {known}")
