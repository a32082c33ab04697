"""LLVM IR snippets on vectors of 16 lanes, used by the intrinsics of `simd` and by the matrix tiles.

Every function takes the IR builder first and returns IR values. Addresses are 64-bit integers.
"""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils

from vllm_nb.kernels.cpu.isa import VARIANTS, Isa

Value = Any  # an IR value; llvmlite has no type hints
Builder = Any

i8, i16, i32, i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
f16, f32, f64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
LANES = 16
FLOATS, INTS = ir.VectorType(f32, LANES), ir.VectorType(i32, LANES)
HALVES, SHORTS = ir.VectorType(f16, LANES), ir.VectorType(i16, LANES)
BYTES = ir.VectorType(i8, 4 * LANES)

# from LLVM 22 the byte operands of vpdpbusd are vectors of bytes, before of i32
BYTE_OPERANDS = llvm.llvm_version_info[0] >= 22


class _BFloat(ir.Type):  # type: ignore[misc]
    """llvmlite's builder has no bfloat type; only its name is needed, for bitcasts into vdpbf16ps."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BFLOATS = ir.VectorType(_BFloat(), 2 * LANES)

_isa: Isa = VARIANTS[-1]


def use(isa: Isa) -> None:
    """Choose the variant that all code emitted from now on in this process is for."""
    global _isa
    _isa = isa


def multiplies_pairs() -> bool:
    """Whether products with bfloat16 weights multiply pairs."""
    return _isa.pairs


def many_registers() -> bool:
    """Whether there are 32 registers of 16 lanes; else there are 8 or fewer, two or more to a vector."""
    return _isa.dot8 == "vnni512"


def const(value: int) -> Value:
    return ir.Constant(i64, value)


def int_vector(value: int) -> Value:
    return ir.Constant(INTS, [value] * LANES)


def float_vector(value: float) -> Value:
    return ir.Constant(FLOATS, [value] * LANES)


def byte_vector(value: int) -> Value:
    return ir.Constant(BYTES, [value] * 64)


def offset(b: Builder, address: Value, scale: int, index: Value, plus: int = 0) -> Value:
    """address + scale * index + plus"""
    return b.add(b.add(address, b.mul(index, const(scale))), const(plus))


@contextmanager
def for_range(b: Builder, count: Value) -> Iterator[Value]:
    """A loop; gives its index, 0 to count - 1."""
    with cgutils.for_range(b, count) as loop:
        yield loop.index


def variable(b: Builder, value: Value) -> Value:
    """A local variable, to `b.load` and `b.store`, which holds `value` from here on."""
    place = cgutils.alloca_once(b, value.type)
    b.store(value, place)
    return place


def disguise(b: Builder, value: Value) -> Value:
    """The same integer, of which the compiler knows nothing: what lies at such an address it cannot keep in registers
    from one turn of a loop to the next."""
    kind = ir.FunctionType(value.type, [value.type])
    return b.asm(kind, "", "=r,0", [value], side_effect=True)


def load(b: Builder, address: Value, kind: Any) -> Value:
    value = b.load(b.inttoptr(address, ir.PointerType(kind)))
    value.align = 1
    return value


def store(b: Builder, address: Value, value: Value) -> None:
    b.store(value, b.inttoptr(address, ir.PointerType(value.type))).align = 1


def prefetch(b: Builder, address: Value, near: bool = True) -> None:
    """Ask for the cache line at `address`, to be read soon; any address will do. near: into the first cache, not only
    into the second."""
    pointer = b.inttoptr(address, ir.PointerType(i8))
    kind = ir.FunctionType(ir.VoidType(), [pointer.type] + [i32] * 3)
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(function, [pointer] + [ir.Constant(i32, n) for n in (0, 3 if near else 2, 1)])


def splat(b: Builder, value: Value) -> Value:
    """One scalar in all 16 lanes."""
    vector = ir.VectorType(value.type, LANES)
    undefined = ir.Constant(vector, ir.Undefined)
    first = b.insert_element(undefined, value, ir.Constant(i32, 0))
    return b.shuffle_vector(first, undefined, ir.Constant(INTS, [0] * LANES))


def call(b: Builder, name: str, result: Any, *args: Value) -> Value:
    """Call the LLVM intrinsic or C function `name`."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)


def fma(b: Builder, x: Value, y: Value, plus: Value) -> Value:
    return call(b, "llvm.fma.v16f32", FLOATS, x, y, plus)


def load_halves(b: Builder, address: Value) -> Value:
    """16 float16 values as float32."""
    return b.fpext(load(b, address, HALVES), FLOATS)


def pick(b: Builder, vector: Value, start: int, step: int, count: int) -> Value:
    """`count` lanes of a vector: start, start + step, ..."""
    lanes = ir.Constant(ir.VectorType(i32, count), [start + step * n for n in range(count)])
    return b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)


def join(b: Builder, low: Value, high: Value) -> Value:
    count = 2 * low.type.count
    return b.shuffle_vector(low, high, ir.Constant(ir.VectorType(i32, count), list(range(count))))


def dot_bytes(b: Builder, total: Value, unsigned: Value, signed: Value) -> Value:
    """total [16 x i32] + per lane the sum of 4 products, unsigned bytes times signed bytes (both [64 x i8]); exact."""
    if _isa.dot8 == "vnni512":
        kind = BYTES if BYTE_OPERANDS else INTS
        operands = (b.bitcast(unsigned, kind), b.bitcast(signed, kind))
        return call(b, "llvm.x86.avx512.vpdpbusd.512", INTS, total, *operands)
    if _isa.dot8 in ("vnni256", "avx2"):
        multiply = _vnni256 if _isa.dot8 == "vnni256" else _multiply_add_avx2
        halves = [
            multiply(b, pick(b, total, 8 * h, 1, 8), pick(b, unsigned, 32 * h, 1, 32), pick(b, signed, 32 * h, 1, 32))
            for h in range(2)
        ]
        return join(b, *halves)
    unsigned, signed = b.bitcast(unsigned, INTS), b.bitcast(signed, INTS)
    for j in range(4):
        x = b.and_(b.lshr(unsigned, int_vector(8 * j)), int_vector(255))
        y = b.ashr(b.shl(signed, int_vector(24 - 8 * j)), int_vector(24))
        total = b.add(total, b.mul(x, y))
    return total


def _vnni256(b: Builder, total: Value, unsigned: Value, signed: Value) -> Value:
    kind = unsigned.type if BYTE_OPERANDS else total.type
    operands = (b.bitcast(unsigned, kind), b.bitcast(signed, kind))
    return call(b, "llvm.x86.avx512.vpdpbusd.256", total.type, total, *operands)


def _multiply_add_avx2(b: Builder, total: Value, unsigned: Value, signed: Value) -> Value:
    """On 16-bit lanes: `vpmaddubsw` would saturate on 8-bit weights."""
    shorts = ir.VectorType(i16, 16)
    eight, low_byte = (ir.Constant(shorts, [v] * 16) for v in (8, 255))
    unsigned, signed = b.bitcast(unsigned, shorts), b.bitcast(signed, shorts)
    evens = (b.and_(unsigned, low_byte), b.ashr(b.shl(signed, eight), eight))
    odds = (b.lshr(unsigned, eight), b.ashr(signed, eight))
    for pair in (evens, odds):
        total = b.add(total, call(b, "llvm.x86.avx2.pmadd.wd", total.type, *pair))
    return total


def dot_bfloats(b: Builder, total: Value, x: Value, y: Value) -> Value:
    """total [16 x f32] + per lane x0 * y0 + x1 * y1; x and y hold pairs of bfloat16 in 16 lanes of i32."""
    if _isa.dot_bf16:
        operands = (b.bitcast(x, BFLOATS), b.bitcast(y, BFLOATS))
        return call(b, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, total, *operands)
    low = [b.bitcast(b.shl(v, int_vector(16)), FLOATS) for v in (x, y)]
    high = [b.bitcast(b.and_(v, int_vector(-65536)), FLOATS) for v in (x, y)]
    return fma(b, high[0], high[1], fma(b, low[0], low[1], total))


def round_to_bfloats(b: Builder, x: Value) -> Value:
    """16 floats to the nearest bfloat16, ties to even, as 16 x i16."""
    bits = b.bitcast(x, INTS)
    odd = b.and_(b.lshr(bits, int_vector(16)), int_vector(1))
    rounded = b.lshr(b.add(b.add(bits, int_vector(0x7FFF)), odd), int_vector(16))
    return b.trunc(rounded, SHORTS)


def round_floats(b: Builder, x: Value) -> Value:
    """16 floats rounded to what bfloat16 can hold; as bits."""
    return b.shl(b.zext(round_to_bfloats(b, x), INTS), int_vector(16))


def look_up_bytes(b: Builder, table: Sequence[int], index: Value) -> Value:
    """table[index] for 64 indices 0..15."""
    if _isa.dot8 == "plain":
        found = byte_vector(table[0])
        for n, value in enumerate(table[1:], 1):
            found = b.select(b.icmp_unsigned("==", index, byte_vector(n)), byte_vector(value), found)
        return found
    half = ir.VectorType(i8, 32)
    repeated = ir.Constant(half, [*table, *table])
    halves = [call(b, "llvm.x86.avx2.pshuf.b", half, repeated, pick(b, index, 32 * h, 1, 32)) for h in range(2)]
    return join(b, *halves)


def spin_hint(b: Builder) -> None:
    """Tell the processor that this is a waiting loop."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        call(b, "llvm.x86.sse2.pause", ir.VoidType())
    elif machine in ("aarch64", "arm64"):
        call(b, "llvm.aarch64.hint", ir.VoidType(), ir.Constant(i32, 1))
