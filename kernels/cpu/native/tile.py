"""Matrix tiles: 16 output rows of packed weights times a few rows of activations.

Integer weights (see `formats`) times int8 activations with one float32 scale per 32. Per block, for each output:

    sum = fma(float(dot of the bytes), weight scale * activation scale, sum);  sum = fma(minimum, sum of x, sum) if any

Integer dots are exact, and the float steps run in this order in every tile, so a row's result does not depend on how
many rows there are or where they lie. Activations of R rows (1, or 8 side by side) lie block by block in records:

    quads int8 [8, R, 4]    scales float32 [R]    sums float32 [R] (of the block's values)    int_sums int32 [2, R]

so that all of a tile's addresses are one pointer and constants: with a stride a row, address arithmetic costs a third.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from vllm_nb.kernels.cpu.formats import CODEBOOK, QUADS, VECTOR_BYTES, Format
from vllm_nb.kernels.cpu.layout import RECORD_BYTES, RECORD_INT_SUMS, RECORD_SCALES, RECORD_SUMS
from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native.emit import BYTES, FLOATS, INTS, Builder, Value, byte_vector, const, float_vector
from vllm_nb.kernels.cpu.native.simd import i64, op, void

STEP_BYTES = {"bf16": VECTOR_BYTES, "f16": VECTOR_BYTES // 2, "f32": VECTOR_BYTES}  # of floating-point weights


def _effective_zero(fmt: Format) -> int:
    """What has to be subtracted from the bytes of `_quads`; codebook values are raised to be unsigned."""
    return 128 if fmt.codebook else fmt.zero


def _quads(b: Builder, fmt: Format, block: Value) -> list[Value]:
    """The 8 quads of a packed block as unsigned bytes."""
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


# (quads, then for each group its scale, and its minimum or None)
Block = tuple[list[Value], list[tuple[Value, Value | None]]]


def _read_block(b: Builder, fmt: Format, block: Value) -> Block:
    """A packed block, spread out in registers."""

    def factors(group: int) -> tuple[Value, Value | None]:
        scale = emit.load_halves(b, b.add(block, const(fmt.scales_at + 32 * group)))
        return scale, emit.load_halves(b, b.add(block, const(fmt.minima_at + 32 * group))) if fmt.has_min else None

    return _quads(b, fmt, block), [factors(group) for group in range(fmt.groups)]


def _broadcast(b: Builder, address: Value, kind: Any) -> Value:
    return emit.splat(b, emit.load(b, address, kind))


class _Row:
    """One row's share in a record."""

    def __init__(self, b: Builder, record: Value, row: int, group: int):
        self._b, self._record, self._row, self._group = b, record, row, group

    def quad(self, number: int) -> Value:
        at = const(4 * (self._group * number + self._row))
        return self._b.bitcast(_broadcast(self._b, self._b.add(self._record, at), emit.i32), BYTES)

    def scale(self) -> Value:
        return _broadcast(self._b, self._at(RECORD_SCALES), emit.f32)

    def sum(self) -> Value:
        return _broadcast(self._b, self._at(RECORD_SUMS), emit.f32)

    def int_sum(self, halves: range) -> Value:
        """Of one half of the block, or of both."""
        sums = [_broadcast(self._b, self._at(RECORD_INT_SUMS + 4 * half), emit.i32) for half in halves]
        return self._b.add(*sums) if len(sums) == 2 else sums[0]

    def _at(self, offset: int) -> Value:
        return self._b.add(self._record, const(offset * self._group + 4 * self._row))


def _add_block(b: Builder, fmt: Format, weights: Block, rows: list[_Row], totals: list[Value]) -> None:
    """totals[m] += one block's products with row m."""
    quads, factors = weights
    per_group = QUADS // fmt.groups
    chains = 2 if len(rows) <= 2 else 1  # few rows: two chains of dots hide their latency
    for group, (scale, minimum) in enumerate(factors):
        halves = range(group, group + 1) if fmt.groups == 2 else range(2)
        zero = ir.Constant(INTS, [-_effective_zero(fmt)] * emit.LANES)
        starts = [b.mul(row.int_sum(halves), zero) if _effective_zero(fmt) else emit.int_vector(0) for row in rows]
        dots = [[start] + [emit.int_vector(0)] * (chains - 1) for start in starts]
        for quad in range(group * per_group, (group + 1) * per_group):
            for row, dot in zip(rows, dots, strict=True):
                dot[quad % chains] = emit.dot_bytes(b, dot[quad % chains], quads[quad], row.quad(quad))
        for row, dot, total in zip(rows, dots, totals, strict=True):
            product = b.sitofp(b.add(*dot) if chains == 2 else dot[0], FLOATS)
            result = emit.fma(b, product, b.fmul(scale, row.scale()), b.load(total))
            if minimum is not None and fmt.groups == 2:
                result = emit.fma(b, minimum, b.fmul(row.scale(), b.sitofp(row.int_sum(halves), FLOATS)), result)
            elif minimum is not None:
                result = emit.fma(b, minimum, row.sum(), result)
            b.store(result, total)


def _store_rows(b: Builder, totals: list[Value], out: Value, stride: Value, count: Value) -> None:
    """The first `count` rows, `stride` floats apart."""
    for row, total in enumerate(totals):
        with b.if_then(b.icmp_signed(">", count, const(row)), likely=True):
            emit.store(b, emit.offset(b, out, 4, b.mul(stride, const(row))), total)


def quantised_tile(fmt: Format, rows: int, group: int) -> Any:
    """-> intrinsic (tile, records, blocks, out, out_stride in floats, count).

    The first `rows` of the records' `group` times a tile; `count` of them are stored.
    """

    @op(void, i64, i64, i64, i64, i64, i64)
    def tile(b: Builder, w: Value, x: Value, blocks: Value, out: Value, stride: Value, count: Value) -> None:
        totals = [cgutils.alloca_once_value(b, float_vector(0.0)) for _ in range(rows)]
        with cgutils.for_range(b, blocks) as loop:
            record = emit.offset(b, x, RECORD_BYTES * group, loop.index)
            block = _read_block(b, fmt, emit.offset(b, w, fmt.block_bytes, loop.index))
            _add_block(b, fmt, block, [_Row(b, record, row, group) for row in range(rows)], totals)
        _store_rows(b, [b.load(total) for total in totals], out, stride, count)

    return tile


class _FloatTile:
    """Sums of 16 lanes for some rows: weights of `kind` times activations, step by step.

    A step is one input, or a pair of inputs for bf16. x has 4 bytes a row and step: a float32, or a bfloat16 pair for
    "bf16". Even and odd steps are summed apart, which hides latency; their number is even.
    """

    def __init__(self, b: Builder, kind: str, rows: int, row_stride: int, step_stride: int):
        self._b, self._kind, self._row_stride, self._step_stride = b, kind, row_stride, step_stride
        self._chains = [[cgutils.alloca_once_value(b, float_vector(0.0)) for _ in range(rows)] for _ in range(2)]

    def add(self, w: Value, steps: Value, x: Value) -> None:
        b, step_bytes = self._b, STEP_BYTES[self._kind]
        with cgutils.for_range(b, b.lshr(steps, const(1))) as pair:
            for chain in range(2):
                weights = emit.offset(b, w, 2 * step_bytes, pair.index, chain * step_bytes)
                values = emit.offset(b, x, 2 * self._step_stride, pair.index, chain * self._step_stride)
                self._add_step(weights, values, self._chains[chain])

    def _add_step(self, w: Value, x: Value, totals: list[Value]) -> None:
        b = self._b
        read = {"bf16": lambda: emit.load(b, w, INTS), "f16": lambda: emit.load_halves(b, w)}
        weights = read.get(self._kind, lambda: emit.load(b, w, FLOATS))()
        for row, total in enumerate(totals):
            at = b.add(x, const(self._row_stride * row))
            if self._kind == "bf16":
                b.store(emit.dot_bfloats(b, b.load(total), weights, _broadcast(b, at, emit.i32)), total)
            else:
                b.store(emit.fma(b, weights, _broadcast(b, at, emit.f32), b.load(total)), total)

    def store(self, out: Value, stride: Value, count: Value) -> None:
        b = self._b
        sums = [b.fadd(b.load(even), b.load(odd)) for even, odd in zip(*self._chains, strict=True)]
        _store_rows(b, sums, out, stride, count)


def float_matrix_tile(kind: str, rows: int, row_stride: int, step_stride: int) -> Any:
    """-> intrinsic (tile, steps, x, out, out_stride in floats, count); strides of x in bytes."""

    @op(void, i64, i64, i64, i64, i64, i64)
    def tile(b: Builder, w: Value, steps: Value, x: Value, out: Value, stride: Value, count: Value) -> None:
        sums = _FloatTile(b, kind, rows, row_stride, step_stride)
        sums.add(w, steps, x)
        sums.store(out, stride, count)

    return tile


def float_pieces_tile(kind: str, rows: int, row_stride: int) -> Any:
    """-> intrinsic (table, pieces, steps, x, out, out_stride in floats): weights in pieces, whose addresses lie in the
    table; x runs on from piece to piece."""

    @op(void, i64, i64, i64, i64, i64, i64)
    def tile(b: Builder, table: Value, pieces: Value, steps: Value, x: Value, out: Value, stride: Value) -> None:
        sums = _FloatTile(b, kind, rows, row_stride, 4)
        with cgutils.for_range(b, pieces) as piece:
            w = emit.load(b, emit.offset(b, table, 8, piece.index), emit.i64)
            sums.add(w, steps, emit.offset(b, x, 4, b.mul(piece.index, steps)))
        sums.store(out, stride, const(rows))

    return tile
