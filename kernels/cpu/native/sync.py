"""Atomic memory access, waiting, and calls through addresses: what the threads of a program share."""

from llvmlite import ir

from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native.emit import Builder, Value
from vllm_nb.kernels.cpu.native.simd import i64, op, void


@op(i64, i64, i64)
def atomic_add(b: Builder, address: Value, value: Value) -> Value:
    """Adds to the int64 in memory; returns what it was."""
    return b.atomic_rmw("add", b.inttoptr(address, ir.PointerType(emit.i64)), value, "seq_cst")


@op(i64, i64)
def atomic_load(b: Builder, address: Value) -> Value:
    return b.load_atomic(b.inttoptr(address, ir.PointerType(emit.i64)), "seq_cst", 8)


@op(void, i64, i64)
def atomic_store(b: Builder, address: Value, value: Value) -> None:
    b.store_atomic(value, b.inttoptr(address, ir.PointerType(emit.i64)), "seq_cst", 8)


@op(void)
def spin_hint(b: Builder) -> None:
    emit.spin_hint(b)


@op(i64)
def clock(b: Builder) -> Value:
    """The processor's time-stamp counter (0 where there is none)."""
    return emit.call(b, "llvm.readcyclecounter", emit.i64)


@op(i64, i64)
def call_int(b: Builder, function: Value) -> Value:
    """Call the C function `int f(void)` at an address."""
    kind = ir.FunctionType(emit.i32, [])
    return b.sext(b.call(b.inttoptr(function, ir.PointerType(kind)), []), emit.i64)


@op(void, i64, i64, i64, i64, i64)
def call_kernel(b: Builder, function: Value, args: Value, step: Value, thread: Value, threads: Value) -> None:
    """Call a compiled kernel at an address."""
    kind = ir.FunctionType(ir.VoidType(), [emit.i64] * 4)
    b.call(b.inttoptr(function, ir.PointerType(kind)), [args, step, thread, threads])
