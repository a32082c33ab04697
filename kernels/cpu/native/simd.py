"""Vectors of 16 lanes in Numba: `F` (float32) and `I` (int32) with operators, memory access, and atomics.

    total = zeros()
    for i in range(0, n, 16):
        x = load(address + 4 * i)
        total = fma(x, x, total)

Each function is one Numba intrinsic, emitted in place. Addresses are int64; a kernel sees no arrays.
"""

import inspect
import operator
from collections.abc import Callable
from typing import Any, ClassVar

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, register_model

from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native.emit import FLOATS, INTS, LANES, Builder, Value
from vllm_nb.kernels.cpu.tuning import tuning


class Vector(types.Type):
    """A Numba type that is one LLVM vector."""

    def __init__(self, name: str, llvm: Any):
        super().__init__(name=name)
        self.llvm = llvm


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector):
        super().__init__(manager, kind, kind.llvm)


# annotations of vectors in kernels; Numba infers the types itself
Floats = Any
Ints = Any

F, I = Vector("f32x16", FLOATS), Vector("i32x16", INTS)  # noqa: E741
Quads = Vector("i32x4", ir.VectorType(emit.i32, 4))
f32, i32, i64, void = types.float32, types.int32, types.int64, types.void


def op(result: Any, *params: Any) -> Callable[[Callable[..., Value]], Any]:
    """Decorator: a function that emits IR becomes a Numba intrinsic of these types."""

    def wrap(emitter: Callable[..., Value]) -> Any:
        def typing(*_: Any) -> Any:
            def codegen(context: Any, b: Builder, _: Any, args: Any) -> Value:
                value = emitter(b, *args)
                return context.get_dummy_value() if result is void else value

            return signature(result, *params), codegen

        names = ["typingctx", *(f"arg{n}" for n in range(len(params)))]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        typing.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
        typing.__name__, typing.__doc__ = emitter.__name__, emitter.__doc__
        return intrinsic(typing)

    return wrap


def _operator(function: Any, kind: Vector, method: str) -> None:
    @infer_global(function)
    class _Typing(ConcreteTemplate):
        cases: ClassVar[list[Any]] = [signature(kind, kind, kind)]

    @lower_builtin(function, kind, kind)
    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        return getattr(b, method)(*args)


for _function, _float, _int in (
    (operator.add, "fadd", "add"),
    (operator.sub, "fsub", "sub"),
    (operator.mul, "fmul", "mul"),
    (operator.truediv, "fdiv", None),
    (operator.and_, None, "and_"),
    (operator.or_, None, "or_"),
    (operator.xor, None, "xor"),
):
    for _kind, _method in ((F, _float), (I, _int)):
        if _method:
            _operator(_function, _kind, _method)


# memory


@op(F, i64)
def load(b: Builder, address: Value) -> Value:
    return emit.load(b, address, FLOATS)


@op(void, i64, F)
def store(b: Builder, address: Value, x: Value) -> None:
    emit.store(b, address, x)


@op(I, i64)
def load_ints(b: Builder, address: Value) -> Value:
    return emit.load(b, address, INTS)


@op(void, i64, I)
def store_ints(b: Builder, address: Value, x: Value) -> None:
    emit.store(b, address, x)


def _first_lanes(b: Builder, count: Value) -> Value:
    lanes = ir.Constant(INTS, list(range(LANES)))
    return b.icmp_signed("<", lanes, emit.splat(b, b.trunc(count, emit.i32)))


@op(F, i64, i64, f32)
def load_part(b: Builder, address: Value, count: Value, rest: Value) -> Value:
    """The first `count` (0..16) lanes from memory, the others = rest; touches no memory beyond them."""
    pointer = b.inttoptr(address, ir.PointerType(FLOATS))
    kind = ir.FunctionType(FLOATS, [pointer.type, emit.i32, ir.VectorType(ir.IntType(1), LANES), FLOATS])
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.masked.load.v16f32.p0")
    return b.call(function, [pointer, ir.Constant(emit.i32, 1), _first_lanes(b, count), emit.splat(b, rest)])


@op(void, i64, F, i64)
def store_part(b: Builder, address: Value, x: Value, count: Value) -> None:
    """Only the first `count` (0..16) lanes."""
    pointer = b.inttoptr(address, ir.PointerType(FLOATS))
    kind = ir.FunctionType(ir.VoidType(), [FLOATS, pointer.type, emit.i32, ir.VectorType(ir.IntType(1), LANES)])
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.masked.store.v16f32.p0")
    b.call(function, [x, pointer, ir.Constant(emit.i32, 1), _first_lanes(b, count)])


@op(void, i64, F)
def store_bfloats(b: Builder, address: Value, x: Value) -> None:
    """Rounded to 16 bfloat16 values, 32 bytes."""
    emit.store(b, address, emit.round_to_bfloats(b, x))


@op(Quads, I)
def pack_bytes(b: Builder, x: Value) -> Value:
    """The low byte of each lane: 4 lanes of 4 bytes."""
    return b.bitcast(b.trunc(x, ir.VectorType(emit.i8, LANES)), Quads.llvm)


@op(void, i64, Quads)
def store_bytes(b: Builder, address: Value, x: Value) -> None:
    """16 bytes."""
    emit.store(b, address, x)


@op(F, F)
def round_floats(b: Builder, x: Value) -> Value:
    """Rounded to what bfloat16 can hold."""
    return b.bitcast(emit.round_floats(b, x), FLOATS)


def _store_lanes(typingctx: Any, address: Any, x: Any, stride: Any) -> Any:
    """Each 32-bit lane to its own place, `stride` bytes apart."""

    def codegen(context: Any, b: Builder, _: Any, args: Any) -> Value:
        address, x, stride = args
        for lane in range(x.type.count):
            value = b.extract_element(x, ir.Constant(emit.i32, lane))
            emit.store(b, b.add(address, b.mul(stride, emit.const(lane))), value)
        return context.get_dummy_value()

    return void(i64, x, i64), codegen


store_lanes: Any = intrinsic(_store_lanes)


def _scalar_access(kind: Any, llvm: Any) -> tuple[Any, Any]:
    @op(kind, i64)
    def load_scalar(b: Builder, address: Value) -> Value:
        return emit.load(b, address, llvm)

    @op(void, i64, kind)
    def store_scalar(b: Builder, address: Value, value: Value) -> None:
        emit.store(b, address, value)

    return load_scalar, store_scalar


load_i64, store_i64 = _scalar_access(i64, emit.i64)
load_f32, store_f32 = _scalar_access(f32, emit.f32)
load_f64, store_f64 = _scalar_access(types.float64, emit.f64)


def _narrow_access(llvm: Any) -> tuple[Any, Any]:
    @op(i64, i64)
    def load_scalar(b: Builder, address: Value) -> Value:
        return b.sext(emit.load(b, address, llvm), emit.i64)

    @op(void, i64, i64)
    def store_scalar(b: Builder, address: Value, value: Value) -> None:
        emit.store(b, address, b.trunc(value, llvm))

    return load_scalar, store_scalar


load_i8, store_i8 = _narrow_access(emit.i8)
load_i16, store_i16 = _narrow_access(emit.i16)
load_i32, store_i32 = _narrow_access(emit.i32)


@op(f32, i64)
def load_f16(b: Builder, address: Value) -> Value:
    return b.fpext(emit.load(b, address, emit.f16), emit.f32)


@op(f32, i64)
def bits_to_float(b: Builder, bits: Value) -> Value:
    return b.bitcast(b.trunc(bits, emit.i32), emit.f32)


@op(void, i64)
def prefetch_far(b: Builder, address: Value) -> None:
    """Into the second cache only."""
    emit.prefetch(b, address, near=False)


@op(void, i64)
def prefetch(b: Builder, address: Value) -> None:
    """Ask for the cache line at `address`, to be read soon."""
    emit.prefetch(b, address, near=tuning().fetch_near)


# making vectors


@op(F)
def zeros(b: Builder) -> Value:
    return emit.float_vector(0.0)


@op(F, f32)
def splat(b: Builder, x: Value) -> Value:
    return emit.splat(b, x)


@op(I, i64)
def splat_int(b: Builder, x: Value) -> Value:
    return emit.splat(b, b.trunc(x, emit.i32))


@op(I)
def lane_numbers(b: Builder) -> Value:
    return ir.Constant(INTS, list(range(LANES)))


# arithmetic


@op(F, F, F, F)
def fma(b: Builder, x: Value, y: Value, plus: Value) -> Value:
    return emit.fma(b, x, y, plus)


@op(F, F, F)
def maximum(b: Builder, x: Value, y: Value) -> Value:
    """Per lane; NaN in x is dropped, NaN in y stays."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


@op(F, F, F)
def minimum(b: Builder, x: Value, y: Value) -> Value:
    return b.select(b.fcmp_ordered("<", x, y), x, y)


@op(I, I, I)
def max_ints(b: Builder, x: Value, y: Value) -> Value:
    return b.select(b.icmp_signed(">", x, y), x, y)


@op(F, F)
def absolute(b: Builder, x: Value) -> Value:
    return emit.call(b, "llvm.fabs.v16f32", FLOATS, x)


@op(f32, f32)
def sqrt(b: Builder, x: Value) -> Value:
    return emit.call(b, "llvm.sqrt.f32", emit.f32, x)


@op(I, F)
def nearest(b: Builder, x: Value) -> Value:
    """To the nearest integer, ties to even."""
    return b.fptosi(emit.call(b, "llvm.nearbyint.v16f32", FLOATS, x), INTS)


@op(F, I)
def to_floats(b: Builder, x: Value) -> Value:
    return b.sitofp(x, FLOATS)


@op(F, I)
def as_floats(b: Builder, x: Value) -> Value:
    """The same bits."""
    return b.bitcast(x, FLOATS)


@op(I, F)
def as_ints(b: Builder, x: Value) -> Value:
    return b.bitcast(x, INTS)


@op(I, I, i64)
def shift_left(b: Builder, x: Value, bits: Value) -> Value:
    return b.shl(x, emit.splat(b, b.trunc(bits, emit.i32)))


@op(F, F, F, F, F)
def where_less(b: Builder, x: Value, y: Value, then: Value, otherwise: Value) -> Value:
    """Per lane: then if x < y else otherwise."""
    return b.select(b.fcmp_ordered("<", x, y), then, otherwise)


@op(F, I, I, F, F)
def where_less_ints(b: Builder, x: Value, y: Value, then: Value, otherwise: Value) -> Value:
    return b.select(b.icmp_signed("<", x, y), then, otherwise)


@op(i64, F, F)
def mask_less(b: Builder, x: Value, y: Value) -> Value:
    """Bit n is set where x < y in lane n."""
    return b.zext(b.bitcast(b.fcmp_ordered("<", x, y), emit.i16), emit.i64)


@op(i64, F)
def mask_nan(b: Builder, x: Value) -> Value:
    return b.zext(b.bitcast(b.fcmp_unordered("uno", x, x), emit.i16), emit.i64)


@op(i64, i64)
def count_bits(b: Builder, x: Value) -> Value:
    return emit.call(b, "llvm.ctpop.i64", emit.i64, x)


@op(i64, i64)
def lowest_bit(b: Builder, x: Value) -> Value:
    """Number of the lowest set bit; x != 0."""
    return emit.call(b, "llvm.cttz.i64", emit.i64, x, ir.Constant(ir.IntType(1), 1))


# across lanes, always in the same order


def _halve(b: Builder, x: Value, combine: Callable[[Value, Value], Value]) -> Value:
    count = x.type.count
    while count > 1:
        count //= 2
        x = combine(emit.pick(b, x, 0, 1, count), emit.pick(b, x, count, 1, count))
    return b.extract_element(x, ir.Constant(emit.i32, 0))


@op(f32, F)
def sum_lanes(b: Builder, x: Value) -> Value:
    return _halve(b, x, b.fadd)


@op(f32, F)
def max_lanes(b: Builder, x: Value) -> Value:
    return _halve(b, x, lambda low, high: b.select(b.fcmp_ordered(">", low, high), low, high))


@op(i64, I)
def sum_int_lanes(b: Builder, x: Value) -> Value:
    return b.sext(_halve(b, x, b.add), emit.i64)


@op(i64, I)
def max_int_lanes(b: Builder, x: Value) -> Value:
    greatest = _halve(b, x, lambda low, high: b.select(b.icmp_signed(">", low, high), low, high))
    return b.sext(greatest, emit.i64)
