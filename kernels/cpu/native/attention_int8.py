"""Attention's products with the 8-bit cache (layout: kv.py): what `attention_tile.attend` needs.

The cache is read as it is, by exact integer dots; the other side is held in 16 bits, as a high and a low byte, so that
what rounding there is comes from the cache alone:

    q           (128 * high + low) * scale, a scale for each 32 dimensions
    weights     (128 * high + low) * scale, a scale for each row and partition; a weight is exp(score - top) times its
                key's scale of values

Of each such group lie in memory: int8 high [n], int8 low [n], int32 -128 times the sums of both (what the zero point of
the cache's bytes adds to a dot), float32 scale.
"""

from typing import Any

from vllm_nb.kernels.cpu import layout
from vllm_nb.kernels.cpu.formats import BLOCK, QUADS, TILE, VECTOR_BYTES
from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native.attention_tile import (
    HEAD_DIM,
    KEYS,
    KEYS_AT,
    KV_HEADS,
    MINUS_INFINITY,
    QUERY_BYTES,
    ROWS,
    VALUES_AT,
    Products,
    Q,
    any_rows,
    head_width,
    row_address,
)
from vllm_nb.kernels.cpu.native.emit import BYTES, FLOATS, Builder, Value, const
from vllm_nb.kernels.cpu.native.functions import exp
from vllm_nb.kernels.cpu.native.halves import load_halves
from vllm_nb.kernels.cpu.native.kernel import arg, helper
from vllm_nb.kernels.cpu.native.simd import (
    absolute,
    as_ints,
    bits_to_float,
    i64,
    lane_numbers,
    load,
    load_i64,
    load_part,
    max_int_lanes,
    max_ints,
    nearest,
    op,
    pack_bytes,
    prefetch,
    shift_left,
    shift_right,
    splat,
    splat_int,
    store,
    store_bytes,
    store_f32,
    store_i32,
    store_i64,
    sum_int_lanes,
    sum_lanes,
    void,
    where_less_ints,
    zeros,
)

_QUERY_GROUP, _WEIGHT_ROW = 2 * BLOCK + 16, 2 * KEYS + 64  # bytes of a group
_STARTS, _SCALE = 0, 8  # behind its numbers
_LARGEST = 16256.0  # 128 * 127
_KEY_GROUP = TILE * BLOCK  # bytes of 16 keys' 32 dimensions

key_bytes, value_bytes = helper(layout.int8_key_bytes), helper(layout.int8_value_bytes)


def products() -> Products:
    return Products(_load_rows, _score, _softmax, _weigh)


@helper
def _load_rows(args: int, seq: int, head: int, tile: int, rows: int, room: int) -> None:
    head_dim = arg(args, HEAD_DIM)
    for row in range(rows):
        q = row_address(args, arg(args, Q), seq, head, tile * ROWS + row)
        for i in range(0, head_dim, BLOCK):
            low_half = load_part(q + 4 * i, min(TILE, head_dim - i), 0.0)
            high_half = load_part(q + 4 * (i + TILE), min(TILE, head_dim - i - TILE), 0.0)
            _split_queries(low_half, high_half, room + QUERY_BYTES * row + i // BLOCK * _QUERY_GROUP)


@helper
def _split(x: Any, inverse: float, high_at: int, low_at: int) -> tuple[Any, Any]:
    """16 floats times `inverse`, up to 16256 -> high and low bytes, stored; returned as integers."""
    whole = nearest(x * splat(inverse))
    high = shift_right(whole + splat_int(64), 7)
    low = whole - shift_left(high, 7)
    store_bytes(high_at, pack_bytes(high))
    store_bytes(low_at, pack_bytes(low))
    return high, low


@helper
def _finish_group(out: int, highs: Any, lows: Any, largest: float) -> None:
    store_i32(out + _STARTS, -128 * sum_int_lanes(highs))
    store_i32(out + _STARTS + 4, -128 * sum_int_lanes(lows))
    store_f32(out + _SCALE, largest / _LARGEST)


@helper
def _inverse(largest: float) -> float:
    return _LARGEST / largest if largest > 0.0 else 0.0


@helper
def _split_queries(first: Any, second: Any, out: int) -> None:
    """32 floats -> a group."""
    # compared as integers, where NaN is greater than all: it must reach the scale
    largest = bits_to_float(max_int_lanes(max_ints(as_ints(absolute(first)), as_ints(absolute(second)))))
    high, low = _split(first, _inverse(largest), out, out + BLOCK)
    more_high, more_low = _split(second, _inverse(largest), out + TILE, out + BLOCK + TILE)
    _finish_group(out + 2 * BLOCK, high + more_high, low + more_low, largest)


def _broadcast(b: Builder, address: Value, kind: Any = emit.i32) -> Value:
    return emit.splat(b, emit.load(b, address, kind))


def _bytes_at(b: Builder, address: Value) -> Value:
    """4 bytes in each of 16 lanes."""
    return b.bitcast(_broadcast(b, address), BYTES)


def _join(b: Builder, high: Value, low: Value) -> Value:
    """128 * high + low, as floats"""
    return b.sitofp(b.add(b.shl(high, emit.int_vector(7)), low), FLOATS)


def _starts(b: Builder, group: Value, numbers: int) -> list[Value]:
    """What a group's high and low dots begin with."""
    return [_broadcast(b, b.add(group, const(2 * numbers + _STARTS + 4 * part))) for part in range(2)]


def _scale(b: Builder, group: Value, numbers: int) -> Value:
    return _broadcast(b, b.add(group, const(2 * numbers + _SCALE)), emit.f32)


def _scores_tile(rows: int) -> Any:
    """-> intrinsic (table of addresses, pieces, groups of 32 dimensions, where their scales are, queries, out)"""

    @op(void, i64, i64, i64, i64, i64, i64)
    def tile(b: Builder, table: Value, pieces: Value, groups: Value, scales: Value, queries: Value, out: Value) -> None:
        with emit.for_range(b, pieces) as piece:
            keys = emit.load(b, emit.offset(b, table, 8, piece), emit.i64)
            totals = [emit.variable(b, emit.float_vector(0.0)) for _ in range(rows)]
            with emit.for_range(b, groups) as group:
                scale = emit.load_halves(b, emit.offset(b, b.add(keys, scales), 2 * TILE, group))
                k, q = emit.offset(b, keys, _KEY_GROUP, group), emit.offset(b, queries, _QUERY_GROUP, group)
                mine = [b.add(q, const(QUERY_BYTES * row)) for row in range(rows)]
                dots = [_starts(b, x, BLOCK) for x in mine]
                for quad in range(QUADS):
                    vector = emit.load(b, b.add(k, const(VECTOR_BYTES * quad)), BYTES)
                    for x, dot in zip(mine, dots, strict=True):
                        for part in range(2):
                            other = _bytes_at(b, b.add(x, const(BLOCK * part + 4 * quad)))
                            dot[part] = emit.dot_bytes(b, dot[part], vector, other)
                for x, dot, total in zip(mine, dots, totals, strict=True):
                    factor = b.fmul(scale, _scale(b, x, BLOCK))
                    b.store(emit.fma(b, _join(b, *dot), factor, b.load(total)), total)
            for row, total in enumerate(totals):
                emit.store(b, emit.offset(b, out, 4 * TILE, piece, 4 * KEYS * row), b.load(total))

    return tile


def _values_tile(rows: int) -> Any:
    """-> intrinsic (table of addresses, pieces, offset of 16 dimensions, weights, out, out stride in floats)"""

    @op(void, i64, i64, i64, i64, i64, i64)
    def tile(b: Builder, table: Value, pieces: Value, at: Value, weights: Value, out: Value, stride: Value) -> None:
        mine = [b.add(weights, const(_WEIGHT_ROW * row)) for row in range(rows)]
        dots = [[emit.variable(b, start) for start in _starts(b, x, KEYS)] for x in mine]
        with emit.for_range(b, pieces) as piece:
            values = b.add(emit.load(b, emit.offset(b, table, 8, piece), emit.i64), at)
            first = b.mul(piece, const(TILE))
            for quad in range(TILE // 4):
                vector = emit.load(b, b.add(values, const(VECTOR_BYTES * quad)), BYTES)
                for x, dot in zip(mine, dots, strict=True):
                    for part in range(2):
                        other = _bytes_at(b, b.add(b.add(x, first), const(KEYS * part + 4 * quad)))
                        b.store(emit.dot_bytes(b, b.load(dot[part]), vector, other), dot[part])
        for row, (x, dot) in enumerate(zip(mine, dots, strict=True)):
            total = b.fmul(_join(b, *(b.load(part) for part in dot)), _scale(b, x, KEYS))
            emit.store(b, emit.offset(b, out, 4, b.mul(stride, const(row))), total)

    return tile


_multiply_keys, _multiply_values = any_rows(_scores_tile), any_rows(_values_tile)


@helper
def _fetch(address: int, size: int) -> None:
    """Ask for memory that is soon needed: pieces of a kilobyte are too short for the processor to see it coming."""
    for i in range(0, size, layout.CACHE_LINE):
        prefetch(address + i)


@helper
def _score(args: int, rows: int, keys: int, queries: int, scores: int, table: int) -> None:
    head_dim, width = arg(args, HEAD_DIM), head_width(args)
    groups = (head_dim + BLOCK - 1) // BLOCK
    address, size, value_size = table + 8 * KEYS // TILE, key_bytes(head_dim), value_bytes(width)
    ahead = 2 * arg(args, KV_HEADS)  # sub-blocks of one head; often neighbours in a table are neighbours in memory
    for n in range(keys // TILE):
        number = load_i64(table + 8 * n)
        store_i64(address, arg(args, KEYS_AT) + number * size)
        _fetch(arg(args, KEYS_AT) + (number + ahead) * size, size)
        _fetch(arg(args, VALUES_AT) + number * value_size, value_size)
        _multiply_keys(rows, address, 1, groups, _KEY_GROUP * groups, queries, scores + 4 * TILE * n)


@helper
def _softmax(args: int, row: int, keys: int, valid: int, scores: int, top: float, weights: int, table: int) -> float:
    total, width, largest = zeros(), head_width(args), splat_int(0)
    scales = arg(args, VALUES_AT) + TILE * width
    for i in range(0, keys, TILE):
        p = exp(load(scores + 4 * i) - splat(top)) if top != MINUS_INFINITY else zeros()
        total = total + p
        scale = load_halves(scales + load_i64(table + 8 * (i // TILE)) * value_bytes(width))
        weight = where_less_ints(lane_numbers(), splat_int(valid - i), p * scale, zeros())
        store(scores + 4 * i, weight)
        largest = max_ints(largest, as_ints(weight))
    greatest = bits_to_float(max_int_lanes(largest))  # NaN is greater than all
    out, inverse = weights + _WEIGHT_ROW * row, _inverse(greatest)
    highs, lows = splat_int(0), splat_int(0)
    for i in range(0, keys, TILE):
        high, low = _split(load(scores + 4 * i), inverse, out + i, out + KEYS + i)
        highs, lows = highs + high, lows + low
    _finish_group(out + 2 * KEYS, highs, lows, greatest)
    return sum_lanes(total)


@helper
def _weigh(args: int, rows: int, valid: int, weights: int, slot: int, spare: int, table: int) -> None:
    pieces, width = (valid + TILE - 1) // TILE, head_width(args)
    for n in range(pieces):
        store_i64(table + 8 * n, arg(args, VALUES_AT) + load_i64(table + 8 * n) * value_bytes(width))
    for i in range(0, width, TILE):
        _multiply_values(rows, table, pieces, TILE * i, weights, slot + 4 * i, width)
