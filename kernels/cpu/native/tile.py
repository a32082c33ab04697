"""Matrix tiles: 16 output rows of packed weights times a few rows of activations.

Integer weights (see `blocks`) times int8 activations with one float32 scale per 32. Per block, for each output:

    one scale:    sum = fma(dot * scale, activation scale, sum);  sum = fma(minimum, sum of x, sum) if any
    two scales:   sum = fma(dot 0 * scale 0 + dot 1 * scale 1 + minima times sums, activation scale, sum)

A dot starts from the bits of ROUNDER, and so becomes float32 without an instruction: its product with a scale is
fma(dot, scale, -ROUNDER * scale), of which the last is the same for all rows. That rounds once with one scale; with
two, what is lost is about a part in 10000 of a usual dot. Dots themselves are exact, and the float steps run in this
order in every tile, so a row's result does not depend on how many rows there are or where they lie. Activations of R
rows (1, or 8 side by side) lie block by block in records:

    quads int8 [8, R, 4]    scales float32 [R]    sums float32 [R] (of the block's values)
    starts int32 [3, R]     ROUNDER_BITS - 128 times the sum of the block's numbers, of its first, of its second half's

so that all of a tile's addresses are one pointer and constants: with a stride a row, address arithmetic costs a third.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from vllm_nb.kernels.cpu.formats import BLOCK, QUADS, VECTOR_BYTES, Format
from vllm_nb.kernels.cpu.layout import RECORD_BYTES, RECORD_SCALES, RECORD_STARTS, RECORD_SUMS, ROUNDER_BITS
from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native.blocks import Block, has_zero, read_block
from vllm_nb.kernels.cpu.native.emit import BYTES, FLOATS, INTS, Builder, Value, const, float_vector
from vllm_nb.kernels.cpu.native.simd import i64, op, void
from vllm_nb.kernels.cpu.tuning import tuning

WIDENED = "widened"  # bfloat16 weights times float32 activations: as "bf16" in memory, as "f32" in registers
# of floating-point weights: bytes of two steps, a step being an input, or a pair of them for "bf16"
PAIR_BYTES = {"bf16": 2 * VECTOR_BYTES, WIDENED: VECTOR_BYTES, "f16": VECTOR_BYTES, "f32": 2 * VECTOR_BYTES}


def broadcast(b: Builder, address: Value, kind: Any) -> Value:
    return emit.splat(b, emit.load(b, address, kind))


class Row:
    """One row's share in a record of `group` rows. What several tiles want is read once."""

    def __init__(self, b: Builder, record: Value, row: int, group: int):
        self._b, self._record, self._row, self._group = b, record, row, group
        self._read: dict[int, Value] = {}

    def quad(self, number: int) -> Value:
        return self._b.bitcast(self._broadcast(4 * number, emit.i32), BYTES)

    def scale(self) -> Value:
        return self._broadcast(RECORD_SCALES, emit.f32)

    def sum(self) -> Value:
        return self._broadcast(RECORD_SUMS, emit.f32)

    def start(self, part: int) -> Value:
        """Of the block, or of its first (1) or second (2) half."""
        return self._broadcast(RECORD_STARTS + 4 * part, emit.i32)

    def _broadcast(self, offset: int, kind: Any) -> Value:
        if offset not in self._read:
            at = self._b.add(self._record, const(offset * self._group + 4 * self._row))
            self._read[offset] = broadcast(self._b, at, kind)
        return self._read[offset]


def add_block(b: Builder, fmt: Format, tiles: Sequence[Block], rows: Sequence[Row], totals: Sequence[Value]) -> None:
    """Adds to the variables totals[row * tiles + tile] the products of one block of each tile with each row."""
    pairs = [(row, tile) for row in rows for tile in tiles]
    chains = 2 if len(pairs) <= 2 else 1  # few sums: two chains of dots hide their latency
    dots = [_dots(b, fmt, tiles, rows, group, chains) for group in range(fmt.groups)]
    for place, ((row, tile), total) in enumerate(zip(pairs, totals, strict=True)):
        mine = [group[place] for group in dots]
        add = _add_group if fmt.groups == 1 else _add_groups
        b.store(add(b, row, tile, mine, b.load(total)), total)


def _dots(b: Builder, fmt: Format, tiles: Sequence[Block], rows: Sequence[Row], group: int, chains: int) -> list[Value]:
    """The dots of a group of inputs, plus ROUNDER: [row * tiles + tile]"""
    rounder, zero = emit.int_vector(ROUNDER_BITS), emit.int_vector(0)
    part = group + 1 if fmt.groups == 2 else 0
    sums = [[row.start(part) if has_zero(fmt) else rounder] + [zero] * (chains - 1) for row in rows for _ in tiles]
    per_group = QUADS // fmt.groups
    for quad in range(group * per_group, (group + 1) * per_group):
        weights, chain = [tile.quad(quad) for tile in tiles], quad % chains
        for number, row in enumerate(rows):
            x = row.quad(quad)
            for place, w in enumerate(weights, number * len(tiles)):
                sums[place][chain] = emit.dot_bytes(b, sums[place][chain], w, x)
    return [b.bitcast(b.add(*parts) if chains == 2 else parts[0], FLOATS) for parts in sums]


def _add_group(b: Builder, row: Row, tile: Block, dots: list[Value], total: Value) -> Value:
    total = emit.fma(b, emit.fma(b, dots[0], tile.scale(0), tile.offset()), row.scale(), total)
    return emit.fma(b, tile.minimum(0), row.sum(), total) if tile.minimum else total


def _add_groups(b: Builder, row: Row, tile: Block, dots: list[Value], total: Value) -> Value:
    value = tile.offset()
    for half, dot in enumerate(dots):
        value = emit.fma(b, dot, tile.scale(half), value)
    if tile.minimum:
        for half in range(2):
            value = emit.fma(b, tile.minimum(half), b.bitcast(row.start(half + 1), FLOATS), value)
    return emit.fma(b, value, row.scale(), total)


def sums_at(b: Builder, address: Value, count: int) -> list[Value]:
    """`count` sums in memory, to be used like variables; the address is that of a cache line."""
    places = [b.add(address, const(4 * emit.LANES * n)) for n in range(count)]
    return [b.inttoptr(place, ir.PointerType(FLOATS)) for place in places]


def prefetch_ahead(b: Builder, at: Value, size: int, rows: int) -> None:
    """Memory would else be waited for: by themselves some processors fetch ahead too little, and never past a page."""
    if ahead := tuning().one_row_ahead if rows == 1 else tuning().few_rows_ahead:
        prefetch_lines(b, b.add(at, const(ahead)), size)


def prefetch_lines(b: Builder, at: Value, size: int) -> None:
    for line in range(0, size, VECTOR_BYTES):
        emit.prefetch(b, b.add(at, const(line)), near=tuning().fetch_near)


def store_rows(b: Builder, totals: list[Value], out: Value, stride: Value, count: Value) -> None:
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
        totals = [emit.variable(b, float_vector(0.0)) for _ in range(rows)]
        with emit.for_range(b, blocks) as index:
            record = emit.offset(b, x, RECORD_BYTES * group, index)
            at = emit.offset(b, w, fmt.block_bytes, index)
            prefetch_ahead(b, at, fmt.block_bytes, rows)
            block = read_block(b, fmt, at)
            add_block(b, fmt, [block], [Row(b, record, row, group) for row in range(rows)], totals)
        store_rows(b, [b.load(total) for total in totals], out, stride, count)

    return tile


def block_steps(kind: str) -> int:
    return BLOCK // 2 if kind == "bf16" else BLOCK


def read_pair(b: Builder, kind: str, w: Value) -> list[Value]:
    """16 rows' weights of two steps: float32, or pairs of bfloat16."""
    if kind == WIDENED:
        both = emit.load(b, w, INTS)
        halves = b.shl(both, emit.int_vector(16)), b.and_(both, emit.int_vector(-65536))
        return [b.bitcast(half, FLOATS) for half in halves]
    second = b.add(w, const(PAIR_BYTES[kind] // 2))
    if kind == "f16":
        return [emit.load_halves(b, at) for at in (w, second)]
    return [emit.load(b, at, INTS if kind == "bf16" else FLOATS) for at in (w, second)]


def add_step(b: Builder, kind: str, tiles: Sequence[Value], x: Value, row_stride: int, totals: Sequence[Value]) -> None:
    """Adds to the variables totals[row * tiles + tile] the products of one step of each tile with each row."""
    for number in range(len(totals) // len(tiles)):
        at = b.add(x, const(row_stride * number))
        value = broadcast(b, at, emit.i32 if kind == "bf16" else emit.f32)
        for weights, total in zip(tiles, totals[number * len(tiles) :], strict=False):
            if kind == "bf16":
                b.store(emit.dot_bfloats(b, b.load(total), weights, value), total)
            else:
                b.store(emit.fma(b, weights, value, b.load(total)), total)


class _FloatTile:
    """Sums of 16 lanes for some rows: weights of `kind` times activations, step by step.

    x has 4 bytes a row and step: a float32, or a bfloat16 pair for "bf16". Even and odd steps are summed apart, which
    hides latency; their number is even.
    """

    def __init__(self, b: Builder, kind: str, rows: int, row_stride: int, step_stride: int):
        self._b, self._kind, self._row_stride, self._step_stride = b, kind, row_stride, step_stride
        self._chains = [[emit.variable(b, float_vector(0.0)) for _ in range(rows)] for _ in range(2)]

    def add(self, w: Value, steps: Value, x: Value, *, in_order: bool) -> None:
        """in_order: what follows in memory is read next."""
        b, pair_bytes = self._b, PAIR_BYTES[self._kind]
        with emit.for_range(b, b.lshr(steps, const(1))) as index:
            at = emit.offset(b, w, pair_bytes, index)
            if in_order:
                prefetch_ahead(b, at, pair_bytes, len(self._chains[0]))
            for chain, weights in enumerate(read_pair(b, self._kind, at)):
                values = emit.offset(b, x, 2 * self._step_stride, index, chain * self._step_stride)
                add_step(b, self._kind, [weights], values, self._row_stride, self._chains[chain])

    def store(self, out: Value, stride: Value, count: Value) -> None:
        b = self._b
        sums = [b.fadd(b.load(even), b.load(odd)) for even, odd in zip(*self._chains, strict=True)]
        store_rows(b, sums, out, stride, count)


def float_tile(kind: str, rows: int, group: int) -> Any:
    """The same for floating-point weights, and activations with 4 bytes a row and step."""

    @op(void, i64, i64, i64, i64, i64, i64)
    def tile(b: Builder, w: Value, x: Value, blocks: Value, out: Value, stride: Value, count: Value) -> None:
        sums = _FloatTile(b, kind, rows, 4, 4 * group)
        sums.add(w, b.mul(blocks, const(block_steps(kind))), x, in_order=True)
        sums.store(out, stride, count)

    return tile


def float_pieces_tile(kind: str, rows: int, row_stride: int) -> Any:
    """-> intrinsic (table, pieces, steps, x, out, out_stride in floats): weights in pieces, whose addresses lie in the
    table; x runs on from piece to piece."""

    @op(void, i64, i64, i64, i64, i64, i64)
    def tile(b: Builder, table: Value, pieces: Value, steps: Value, x: Value, out: Value, stride: Value) -> None:
        sums = _FloatTile(b, kind, rows, row_stride, 4)
        with emit.for_range(b, pieces) as piece:
            w = emit.load(b, emit.offset(b, table, 8, piece), emit.i64)
            sums.add(w, steps, emit.offset(b, x, 4, b.mul(piece, steps)), in_order=False)
        sums.store(out, stride, const(rows))

    return tile
