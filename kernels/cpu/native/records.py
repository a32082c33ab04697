"""Eight rows' next 32 activations side by side, as `tile` reads them: a record of int8, or floats.

Rounding to int8 is an addition: ROUNDER plus a number of few bits is a float32 whose lowest bits are that number's
nearest integer. Bytes of 4 rows are put together lane by lane, then turned: 4 neighbours of a row lie side by side.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from vllm_nb.kernels.cpu.layout import (
    GROUP_ROWS,
    RECORD_SCALES,
    RECORD_STARTS,
    RECORD_SUMS,
    ROUNDER,
    ROUNDER_BITS,
)
from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native.emit import BYTES, FLOATS, INTS, LANES, Builder, Value, byte_vector, const
from vllm_nb.kernels.cpu.native.simd import i64, op, void

_EIGHT_FLOATS, _EIGHT_INTS = (ir.VectorType(kind, GROUP_ROWS) for kind in (emit.f32, emit.i32))


@op(void, i64, i64, i64, i64)
def quantize_rows(b: Builder, x: Value, stride: Value, count: Value, record: Value) -> None:
    """x: address of the first row's 32 floats; stride: bytes to the next row; count: rows there are, 1 to 8. The last
    one stands in for those that are missing."""
    rows = _load_rows(b, x, stride, count)
    largest = _largest(b, rows)
    inverse = _inverse(b, largest)
    sums = []
    for half in range(2):
        quads = _quads(b, [_rounded(b, row[half], inverse, number) for number, row in enumerate(rows)])
        total = emit.int_vector(0)
        for number, vector in enumerate(quads):
            emit.store(b, b.add(record, const(64 * (2 * half + number))), vector)
            total = emit.dot_bytes(b, total, byte_vector(1), vector)
        sums.append(b.add(emit.pick(b, total, 0, 1, GROUP_ROWS), emit.pick(b, total, GROUP_ROWS, 1, GROUP_ROWS)))
    _store_factors(b, record, largest, sums)


def _load_rows(b: Builder, x: Value, stride: Value, count: Value) -> list[list[Value]]:
    addresses, last = [x], b.sub(count, const(1))
    for row in range(1, GROUP_ROWS):
        addresses.append(b.add(addresses[-1], b.select(b.icmp_signed("<=", const(row), last), stride, const(0))))
    return [[emit.load(b, b.add(at, const(64 * half)), FLOATS) for half in range(2)] for at in addresses]


def _largest(b: Builder, rows: list[list[Value]]) -> Value:
    """Of each row the greatest absolute value, 8 floats. Compared as integers, where NaN is greater than all: it must
    reach the scale, and so the whole row."""
    absolute = [[b.and_(b.bitcast(half, INTS), emit.int_vector(0x7FFFFFFF)) for half in row] for row in rows]
    found = [_greater(b, *halves) for halves in absolute]
    width = LANES  # lanes of a row in each vector
    while len(found) > 1:
        width //= 2
        found = [_fold(b, low, high, width) for low, high in zip(found[::2], found[1::2], strict=True)]
    return b.bitcast(_greater(b, *(emit.pick(b, found[0], n, 2, GROUP_ROWS) for n in range(2))), _EIGHT_FLOATS)


def _greater(b: Builder, x: Value, y: Value) -> Value:
    return b.select(b.icmp_signed(">", x, y), x, y)


def _fold(b: Builder, low: Value, high: Value, width: int) -> Value:
    """Two vectors of rows with 2 * width lanes each -> one of twice as many rows, with width lanes."""
    starts = range(0, 2 * LANES, 2 * width)
    parts = [[start + n for start in starts for n in range(at, at + width)] for at in (0, width)]
    return _greater(b, *(b.shuffle_vector(low, high, ir.Constant(INTS, lanes)) for lanes in parts))


def _inverse(b: Builder, largest: Value) -> Value:
    """127 over the greatest value; 0 for rows of zeros."""
    full, zero = (ir.Constant(_EIGHT_FLOATS, [value] * GROUP_ROWS) for value in (127.0, 0.0))
    return b.select(b.fcmp_ordered(">", largest, zero), b.fdiv(full, largest), zero)


def _rounded(b: Builder, x: Value, inverse: Value, row: int) -> Value:
    """16 numbers, of which the lowest byte counts."""
    factor = emit.splat(b, b.extract_element(inverse, ir.Constant(emit.i32, row)))
    return b.bitcast(emit.fma(b, x, factor, emit.float_vector(ROUNDER)), INTS)


def _quads(b: Builder, rows: list[Value]) -> list[Value]:
    """8 rows of 16 numbers -> 2 vectors, each of 2 quads: [quad, row, 4 neighbours]"""
    low, high = (_four_rows(b, rows[first : first + 4]) for first in (0, 4))
    turned = []
    for quad in (0, 2):
        # 4 lanes a quad: rows 0 to 3 from `low`, 4 to 7 from `high`
        lanes = [side + 4 * q + n for q in (quad, quad + 1) for side in (0, LANES) for n in range(4)]
        turned.append(b.bitcast(b.shuffle_vector(low, high, ir.Constant(INTS, lanes)), BYTES))
    return turned


def _four_rows(b: Builder, rows: list[Value]) -> Value:
    """Lane 4 * quad + row: that row's 4 neighbours."""
    merged = b.and_(rows[0], emit.int_vector(255))
    for number, row in enumerate(rows[1:3], 1):
        merged = b.or_(merged, b.shl(b.and_(row, emit.int_vector(255)), emit.int_vector(8 * number)))
    merged = b.bitcast(b.or_(merged, b.shl(rows[3], emit.int_vector(24))), BYTES)
    places = [16 * quad + 4 * j + row for quad in range(4) for row in range(4) for j in range(4)]
    turned = b.shuffle_vector(merged, merged, ir.Constant(ir.VectorType(emit.i32, 64), places))
    return b.bitcast(turned, INTS)


def _store_factors(b: Builder, record: Value, largest: Value, sums: list[Value]) -> None:
    scale = b.fdiv(largest, ir.Constant(_EIGHT_FLOATS, [127.0] * GROUP_ROWS))
    whole = b.add(*sums)
    emit.store(b, b.add(record, const(RECORD_SCALES * GROUP_ROWS)), scale)
    product = b.fmul(scale, b.sitofp(whole, _EIGHT_FLOATS))
    emit.store(b, b.add(record, const(RECORD_SUMS * GROUP_ROWS)), product)
    factor, rounder = (ir.Constant(_EIGHT_INTS, [value] * GROUP_ROWS) for value in (-128, ROUNDER_BITS))
    for part, value in enumerate((whole, *sums)):
        at = b.add(record, const((RECORD_STARTS + 4 * part) * GROUP_ROWS))
        emit.store(b, at, b.add(b.mul(value, factor), rounder))


def _interleave(b: Builder, rows: list[Value]) -> list[Value]:
    """8 rows of 16 lanes -> 8 vectors: [2 lanes, 8 rows]"""
    found, width = [[row] for row in rows], 1
    while len(found) > 1:
        found = [_merge(b, low, high, width) for low, high in zip(found[::2], found[1::2], strict=True)]
        width *= 2
    return found[0]


def _merge(b: Builder, low: list[Value], high: list[Value], width: int) -> list[Value]:
    """Vectors of `width` rows each -> twice as many of twice as many rows."""
    merged = []
    for x, y in zip(low, high, strict=True):
        for first in (0, LANES // 2):
            starts = range(first, first + LANES // 2, width)
            lanes = [side + at + n for at in starts for side in (0, LANES) for n in range(width)]
            merged.append(b.shuffle_vector(x, y, ir.Constant(INTS, lanes)))
    return merged


def _interleaver(convert: Callable[[Builder, Value, Value], list[Value]]) -> Any:
    """-> intrinsic (first row's 32 floats, stride, rows there are, out)"""

    @op(void, i64, i64, i64, i64)
    def interleave(b: Builder, x: Value, stride: Value, count: Value, out: Value) -> None:
        rows = [convert(b, *halves) for halves in _load_rows(b, x, stride, count)]
        vectors = [vector for part in zip(*rows, strict=True) for vector in _interleave(b, list(part))]
        for number, vector in enumerate(vectors):
            emit.store(b, b.add(out, const(64 * number)), vector)

    return interleave


def _pairs(b: Builder, low: Value, high: Value) -> list[Value]:
    return [b.bitcast(emit.join(b, emit.round_to_bfloats(b, low), emit.round_to_bfloats(b, high)), INTS)]


interleave_floats = _interleaver(lambda b, low, high: [b.bitcast(low, INTS), b.bitcast(high, INTS)])
interleave_rounded = _interleaver(lambda b, low, high: [emit.round_floats(b, half) for half in (low, high)])
interleave_pairs = _interleaver(_pairs)
