"""Memory access to float16 scales."""

from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native.emit import Builder, Value
from vllm_nb.kernels.cpu.native.simd import F, f32, i64, op, void


@op(F, i64)
def load_halves(b: Builder, address: Value) -> Value:
    """16 float16 values."""
    return emit.load_halves(b, address)


@op(void, i64, f32)
def store_f16(b: Builder, address: Value, x: Value) -> None:
    emit.store(b, address, b.fptrunc(x, emit.f16))
