"""rate_<kind>: what the processor multiplies in registers alone, the ceiling of any product with weights."""

from vllm_nb.kernels.cpu.layout import RATE_CHAINS
from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native.emit import BYTES, FLOATS, INTS, Builder, Value, const
from vllm_nb.kernels.cpu.native.kernel import KERNELS, Function, arg
from vllm_nb.kernels.cpu.native.simd import i64, op, void

_ADD = {
    "int8": (INTS, lambda b, total, x, y: emit.dot_bytes(b, total, b.bitcast(x, BYTES), b.bitcast(y, BYTES))),
    "bf16": (FLOATS, emit.dot_bfloats),
    "f32": (FLOATS, lambda b, total, x, y: emit.fma(b, b.bitcast(x, FLOATS), b.bitcast(y, FLOATS), total)),
}


def _make(kind: str) -> Function:
    form, add = _ADD[kind]

    @op(void, i64, i64)
    def multiply(b: Builder, numbers: Value, times: Value) -> None:
        places = [emit.offset(b, numbers, 64, const(n)) for n in range(RATE_CHAINS)]
        factors = [emit.load(b, place, INTS) for place in places]
        totals = [emit.variable(b, emit.load(b, place, form)) for place in places]
        with emit.for_range(b, times) as index:
            # read anew each time: what is known before the loop, a compiler may multiply before it
            x = emit.load(b, emit.offset(b, numbers, 64, b.and_(index, const(7))), INTS)
            for factor, total in zip(factors, totals, strict=True):
                b.store(add(b, b.load(total), x, factor), total)
        for total, place in zip(totals, places, strict=True):
            emit.store(b, place, b.load(total))

    def rate(args: int, step: int, thread: int, threads: int) -> None:
        """numbers [threads, RATE_CHAINS, 64 bytes], times"""
        multiply(arg(args, 0) + 64 * RATE_CHAINS * thread, arg(args, 1))

    return rate


for _kind in _ADD:
    KERNELS[f"rate_{_kind}"] = lambda kind=_kind: _make(kind)  # type: ignore[misc]
