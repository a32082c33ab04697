"""Gated activations and the logits' soft cap."""

from typing import Any

from vllm_nb.kernels.cpu.native.functions import gelu_tanh, silu, tanh
from vllm_nb.kernels.cpu.native.kernel import KERNELS, Function, arg, header, helper, kernel, share
from vllm_nb.kernels.cpu.native.simd import Floats, bits_to_float, load, load_part, splat, store, store_part


def _make_gated(activate: Any) -> Function:
    def gated(args: int, step: int, thread: int, threads: int) -> None:
        """row kind, gate_up [rows, 2 * width], width, out [rows, width]"""
        rows = header(step, arg(args, 0))
        gate_up, width, out = arg(args, 1), arg(args, 2), arg(args, 3)
        pieces = (width + 15) // 16
        start, stop = share(rows * pieces, thread, threads)
        for item in range(start, stop):
            row, i = item // pieces, item % pieces * 16
            gate = gate_up + 4 * (2 * width * row + i)
            target = out + 4 * (width * row + i)
            if i + 16 <= width:
                store(target, activate(load(gate)) * load(gate + 4 * width))
            else:
                count = width - i
                value = activate(load_part(gate, count, 0.0)) * load_part(gate + 4 * width, count, 0.0)
                store_part(target, value, count)

    return gated


KERNELS["silu_mul"] = lambda: _make_gated(silu)
KERNELS["gelu_tanh_mul"] = lambda: _make_gated(gelu_tanh)


@helper
def soft_cap(x: Floats, cap: Floats) -> Floats:
    return cap * tanh(x / cap)


@kernel
def softcap(args: int, step: int, thread: int, threads: int) -> None:
    """row kind, x, width, cap as bits, out: cap * tanh(x / cap)"""
    rows = header(step, arg(args, 0))
    x, width, cap, out = arg(args, 1), arg(args, 2), splat(bits_to_float(arg(args, 3))), arg(args, 4)
    values = rows * width
    pieces = (values + 15) // 16
    start, stop = share(pieces, thread, threads)
    for piece in range(start, stop):
        at = 64 * piece
        count = min(16, values - 16 * piece)
        if count == 16:
            store(out + at, soft_cap(load(x + at), cap))
        else:
            store_part(out + at, soft_cap(load_part(x + at, count, 0.0), cap), count)
