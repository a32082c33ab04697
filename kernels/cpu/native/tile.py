"""Matrix tiles: 16 output rows of packed weights times a few rows of activations.

Integer weights (see `formats`) times int8 activations with one float32 scale per 32. Per block, for each output:

    sum = fma(float(dot of the bytes), weight scale * activation scale, sum);  sum = fma(minimum, sum of x, sum) if any

One row of activations multiplies the packed weights as they are (`gemv`); several rows share a tile that `unpack` has
spread out to bytes first (`gemm`). Integer dots are exact and the float steps above run in the same order in both, so a
row's result does not depend on how many rows there are.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from vllm_nb.kernels.cpu.formats import BLOCK, CODEBOOK, QUADS, VECTOR_BYTES, Format
from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native.emit import (
    BYTES,
    FLOATS,
    INTS,
    Builder,
    Value,
    byte_vector,
    const,
    float_vector,
    int_vector,
)
from vllm_nb.kernels.cpu.native.simd import F, i64, op, void

UNPACKED_GROUP_BYTES = 2 * VECTOR_BYTES  # correction and scale; a minimum comes on top
FLIP = 128  # added to int8 activations in `gemm`, whose weights are signed


def unpacked_block_bytes(groups: int, has_min: bool) -> int:
    return QUADS * VECTOR_BYTES + groups * (UNPACKED_GROUP_BYTES + VECTOR_BYTES * has_min)


def _effective_zero(fmt: Format) -> int:
    """What has to be subtracted from the bytes of `_quads`; codebook values are raised to be unsigned."""
    return 128 if fmt.codebook else fmt.zero


def _quads(b: Builder, fmt: Format, block: Value) -> list[Value]:
    """The 8 quads of a block as unsigned bytes."""
    loaded: dict[int, Value] = {}

    def field(bits: int, plane: int, base: int, quad: int) -> Value:
        at = plane + quad % bits
        if at not in loaded:
            loaded[at] = emit.load(b, b.add(block, const(VECTOR_BYTES * at)), BYTES)
        if bits == 8:
            return loaded[at]
        left = base - bits * (quad // bits)
        move, by = (b.shl, left) if left > 0 else (b.lshr, -left)
        return b.and_(move(loaded[at], byte_vector(by)), byte_vector(((1 << bits) - 1) << base))

    def value(quad: int) -> Value:
        q = field(fmt.low, 0, 0, quad)
        if fmt.high:
            q = b.or_(q, field(fmt.high, fmt.low, fmt.low, quad))
        return emit.look_up_bytes(b, [v + 128 for v in CODEBOOK], q) if fmt.codebook else q

    return [value(quad) for quad in range(QUADS)]


def _broadcast(b: Builder, address: Value, kind: Any) -> Value:
    return emit.splat(b, emit.load(b, address, kind))


def gemv(fmt: Format) -> Any:
    """-> intrinsic (tile, x int8, x_scale, x_sum, x_int_sum, blocks) -> the 16 outputs of one row."""

    @op(F, i64, i64, i64, i64, i64, i64)
    def tile(b: Builder, w: Value, x: Value, x_scale: Value, x_sum: Value, x_int_sum: Value, blocks: Value) -> Value:
        total = cgutils.alloca_once_value(b, float_vector(0.0))
        per_group = QUADS // fmt.groups
        with cgutils.for_range(b, blocks) as loop:
            block = emit.offset(b, w, fmt.block_bytes, loop.index)
            quads = _quads(b, fmt, block)
            scale_x = _broadcast(b, emit.offset(b, x_scale, 4, loop.index), emit.f32)
            int_sums = [emit.load(b, emit.offset(b, x_int_sum, 8, loop.index, 4 * h), emit.i32) for h in range(2)]
            for group in range(fmt.groups):
                int_sum = int_sums[group] if fmt.groups == 2 else b.add(*int_sums)
                start = emit.splat(b, b.mul(int_sum, ir.Constant(emit.i32, -_effective_zero(fmt))))
                ints = [start, int_vector(0)]  # two chains hide the latency
                for quad in range(group * per_group, (group + 1) * per_group):
                    values = _broadcast(b, emit.offset(b, x, BLOCK, loop.index, 4 * quad), emit.i32)
                    ints[quad % 2] = emit.dot_bytes(b, ints[quad % 2], quads[quad], b.bitcast(values, BYTES))
                scale = emit.load_halves(b, b.add(block, const(fmt.scales_at + 32 * group)))
                dot = b.sitofp(b.add(*ints), FLOATS)
                result = emit.fma(b, dot, b.fmul(scale, scale_x), b.load(total))
                if fmt.has_min:
                    minimum = emit.load_halves(b, b.add(block, const(fmt.minima_at + 32 * group)))
                    if fmt.groups == 2:
                        sums = b.fmul(scale_x, emit.splat(b, b.sitofp(int_sum, emit.f32)))
                    else:
                        sums = _broadcast(b, emit.offset(b, x_sum, 4, loop.index), emit.f32)
                    result = emit.fma(b, minimum, sums, result)
                b.store(result, total)
        return b.load(total)

    return tile


def unpack(fmt: Format) -> Any:
    """-> intrinsic (tile, blocks, out): a tile's weights as signed bytes, with float32 scales, for `gemm`.

    A block becomes 8 quads, then for each group: correction int32 [16], scale [16], minimum [16] if there is one.
    The correction undoes FLIP: -FLIP * (sum of the group's weights).
    """

    @op(void, i64, i64, i64)
    def tile(b: Builder, w: Value, blocks: Value, out: Value) -> None:
        per_group = QUADS // fmt.groups
        size = unpacked_block_bytes(fmt.groups, fmt.has_min)
        with cgutils.for_range(b, blocks) as loop:
            block = emit.offset(b, w, fmt.block_bytes, loop.index)
            target = emit.offset(b, out, size, loop.index)
            quads = [b.sub(q, byte_vector(_effective_zero(fmt))) for q in _quads(b, fmt, block)]
            for quad, values in enumerate(quads):
                emit.store(b, b.add(target, const(VECTOR_BYTES * quad)), values)
            rest = [b.add(target, const(VECTOR_BYTES * (QUADS + n))) for n in range(6)]
            for group in range(fmt.groups):
                weight_sum = int_vector(0)
                for values in quads[group * per_group : (group + 1) * per_group]:
                    weight_sum = emit.dot_bytes(b, weight_sum, byte_vector(FLIP), values)
                emit.store(b, rest.pop(0), b.sub(int_vector(0), weight_sum))
                emit.store(b, rest.pop(0), emit.load_halves(b, b.add(block, const(fmt.scales_at + 32 * group))))
                if fmt.has_min:
                    emit.store(b, rest.pop(0), emit.load_halves(b, b.add(block, const(fmt.minima_at + 32 * group))))

    return tile


def gemm(groups: int, has_min: bool, rows: int) -> Any:
    """-> intrinsic (unpacked tile, x int8 + FLIP, x_scale, x_sum, x_int_sum, blocks, out, out_stride in floats).

    Rows of x lie one after the other: 32 bytes, one scale, one sum and two integer sums a block.
    """
    per_group = QUADS // groups
    group_bytes = UNPACKED_GROUP_BYTES + VECTOR_BYTES * has_min

    @op(void, i64, i64, i64, i64, i64, i64, i64, i64)
    def tile(
        b: Builder, w: Value, x: Value, x_scale: Value, x_sum: Value, x_int_sum: Value, blocks: Value, out: Value,
        out_stride: Value,
    ) -> None:  # fmt: skip
        totals = [cgutils.alloca_once_value(b, float_vector(0.0)) for _ in range(rows)]
        with cgutils.for_range(b, blocks) as loop:
            block = emit.offset(b, w, unpacked_block_bytes(groups, has_min), loop.index)
            at = [b.add(loop.index, b.mul(blocks, const(m))) for m in range(rows)]  # row m's block
            scales_x = [_broadcast(b, emit.offset(b, x_scale, 4, at[m]), emit.f32) for m in range(rows)]
            for group in range(groups):
                aside = QUADS * VECTOR_BYTES + group * group_bytes
                ints = [emit.load(b, b.add(block, const(aside)), INTS)] * rows
                for quad in range(group * per_group, (group + 1) * per_group):
                    weights = emit.load(b, b.add(block, const(VECTOR_BYTES * quad)), BYTES)
                    for m in range(rows):
                        values = _broadcast(b, emit.offset(b, x, BLOCK, at[m], 4 * quad), emit.i32)
                        ints[m] = emit.dot_bytes(b, ints[m], b.bitcast(values, BYTES), weights)
                scale = emit.load(b, b.add(block, const(aside + VECTOR_BYTES)), FLOATS)
                minimum = emit.load(b, b.add(block, const(aside + 2 * VECTOR_BYTES)), FLOATS) if has_min else None
                for m in range(rows):
                    result = emit.fma(b, b.sitofp(ints[m], FLOATS), b.fmul(scale, scales_x[m]), b.load(totals[m]))
                    if has_min and groups == 2:
                        int_sum = emit.load(b, emit.offset(b, x_int_sum, 8, at[m], 4 * group), emit.i32)
                        sums = b.fmul(scales_x[m], emit.splat(b, b.sitofp(int_sum, emit.f32)))
                    elif has_min:
                        sums = _broadcast(b, emit.offset(b, x_sum, 4, at[m]), emit.f32)
                    if has_min:
                        result = emit.fma(b, minimum, sums, result)
                    b.store(result, totals[m])
        for m in range(rows):
            emit.store(b, emit.offset(b, out, 4, b.mul(out_stride, const(m))), b.load(totals[m]))

    return tile


def _float_steps(b: Builder, kind: str, w: Value, x: list[Value], steps: Value, totals: list[list[Value]]) -> None:
    """totals[m][step % 2] += w[step] * x[m][step]. A step is one input, or a pair of inputs for bf16; steps is even."""
    step_bytes = {"bf16": VECTOR_BYTES, "f16": VECTOR_BYTES // 2, "f32": VECTOR_BYTES}[kind]
    with cgutils.for_range(b, b.lshr(steps, const(1))) as loop:
        for chain in range(2):
            address = emit.offset(b, w, 2 * step_bytes, loop.index, chain * step_bytes)
            if kind == "bf16":
                weights = emit.load(b, address, INTS)
            else:
                weights = emit.load_halves(b, address) if kind == "f16" else emit.load(b, address, FLOATS)
            for row, total in zip(x, totals, strict=True):
                value = emit.offset(b, row, 8, loop.index, 4 * chain)
                if kind == "bf16":
                    added = emit.dot_bfloats(b, b.load(total[chain]), weights, _broadcast(b, value, emit.i32))
                else:
                    added = emit.fma(b, weights, _broadcast(b, value, emit.f32), b.load(total[chain]))
                b.store(added, total[chain])


def float_tile(kind: str, rows: int) -> Any:
    """-> intrinsic (tiles, count, steps, x, x_stride in bytes, out, out_stride in floats).

    Weights of `kind` in `count` pieces, whose addresses lie in the table `tiles`, each of `steps` steps of 16 lanes; x
    is bfloat16 for "bf16", else float32, and runs on from piece to piece. The sum is over all pieces, in order.
    """

    @op(void, i64, i64, i64, i64, i64, i64, i64)
    def tile(
        b: Builder, tiles: Value, count: Value, steps: Value, x: Value, x_stride: Value, out: Value, out_stride: Value
    ) -> None:
        totals = [[cgutils.alloca_once_value(b, float_vector(0.0)) for _ in range(2)] for _ in range(rows)]
        with cgutils.for_range(b, count) as loop:
            w = emit.load(b, emit.offset(b, tiles, 8, loop.index), emit.i64)
            start = emit.offset(b, x, 4, b.mul(loop.index, steps))
            rows_x = [b.add(start, b.mul(x_stride, const(m))) for m in range(rows)]
            _float_steps(b, kind, w, rows_x, steps, totals)
        for m in range(rows):
            result = b.fadd(b.load(totals[m][0]), b.load(totals[m][1]))
            emit.store(b, emit.offset(b, out, 4, b.mul(out_stride, const(m))), result)

    return tile
