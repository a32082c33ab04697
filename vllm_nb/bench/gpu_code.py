"""What a compiled kernel does, read from its machine code: registers, loads, barriers and tensor-core instructions of
its main loop, and how many of its programs fit on a processor at once."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

_TOOLS = Path(triton.backends.__file__).parent / "nvidia" / "bin"
# of a streaming multiprocessor, by compute capability: bytes of shared memory (CUDA C++ Programming Guide, table 30;
# 1 KB of it goes to each program)
_SHARED = {80: 164 * 1024, 90: 228 * 1024}
_REGISTERS, _WARPS, _PROGRAMS = 65536, 64, 32
_LINE = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)")


@dataclass(frozen=True)
class Code:
    """registers: of a thread. spilled: bytes a thread keeps in local memory. resident: programs that a processor holds
    at once.

    Of the loop that reads most, or of all code where no loop reads: load_bits, of its widest load from global memory;
    round_bytes, that a program loads in one round; copies, whether that goes to shared memory while others go on;
    barriers, at which threads wait for each other; mma, what multiplies on tensor cores there ("wgmma", "mma" or "").
    """

    registers: int
    spilled: int
    resident: int
    load_bits: int
    round_bytes: int
    copies: bool
    barriers: int
    mma: str


def read_code(cubin: bytes, warps: int, shared: int, capability: int) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, text = (_run(*command, file.name) for command in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c")))
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    assert found, usage
    registers = int(found[1])
    main = max(_parts(text.splitlines()), key=lambda part: _loaded(part)[1])
    widest, loaded = _loaded(main)
    products = "wgmma" if _count(main, "HGMMA", "QGMMA") else "mma" if _count(main, "HMMA", "QMMA") else ""
    return Code(
        registers=registers,
        spilled=int(found[2]) + int(found[3]),
        resident=_resident(registers, warps, shared, capability),
        load_bits=8 * widest,
        round_bytes=32 * warps * loaded,
        copies=_count(main, "LDGSTS") > 0,
        barriers=_count(main, "BAR.SYNC"),
        mma=products,
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def _resident(registers: int, warps: int, shared: int, capability: int) -> int:
    """A warp's registers are given out in units of 256."""
    per_warp = -(-32 * registers // 256) * 256
    by_memory = _SHARED[capability] // (shared + 1024)
    return min(_REGISTERS // per_warp // warps, _WARPS // warps, _PROGRAMS, by_memory)


def _parts(lines: list[str]) -> list[Counter[str]]:
    """How often each instruction stands in each innermost loop, which is what a jump backwards encloses; and in all
    the code, where no loop loads anything."""
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\.L_x_\d+:", line)}
    jumps = [
        (labels.get(found[1], i), i) for i, line in enumerate(lines) if (found := re.search(r"BRA.*`\((\S+)\)", line))
    ]
    loops = [(a, b) for a, b in jumps if a < b]
    inner = [(a, b) for a, b in loops if not any((a, b) != other and a <= other[0] <= other[1] <= b for other in loops)]
    counted = [_instructions(lines[a : b + 1]) for a, b in inner]
    return counted if any(_loaded(part)[1] >= 8 for part in counted) else [_instructions(lines)]


def _instructions(lines: list[str]) -> Counter[str]:
    return Counter(found[1] for line in lines if (found := _LINE.match(line)))


def _loaded(part: Counter[str]) -> tuple[int, int]:
    """Bytes of a thread's widest load from global memory, and of all; of copies to shared memory alone where there are
    any: what else is read is where to copy from."""
    kind = "LDGSTS" if _count(part, "LDGSTS") else "LDG"
    sizes = [(_size(name), count) for name, count in part.items() if name.startswith(kind)]
    return max((size for size, _ in sizes), default=0), sum(size * count for size, count in sizes)


def _size(load: str) -> int:
    found = re.search(r"\.(U8|S8|U16|S16|64|128)\b", load.replace(".BYPASS", ""))
    return {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}[found[1]] if found else 4


def _count(part: Counter[str], *names: str) -> int:
    return sum(count for name, count in part.items() if name.startswith(names))
