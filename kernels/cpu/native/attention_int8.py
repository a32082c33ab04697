"""Attention's products with the 8-bit cache (layout: kv.py): what `attention_tile.attend` needs.

The cache is read as it is, by exact integer dots; the other side is held in 16 bits, as a high and a low byte, so that
what rounding there is comes from the cache alone:

    q           (128 * high + low) * scale, a scale for each row
                for each 32 dimensions: int8 high [32], int8 low [32], int32 -1 times the sum of their numbers (what the
                zero point of keys, 128, adds to a dot, in units of high); then float32 scale
    weights     (256 * high + low) * scale, a scale for each row and partition; a weight is 2**(score - maximum) times
                its key's scale of values
                for each 4 keys: uint8 low [4], high [4], and 8 unused; then float32 scale
"""

from typing import Any

from llvmlite import ir

from vllm_nb.kernels.cpu import layout
from vllm_nb.kernels.cpu.formats import BLOCK, QUADS, TILE, VECTOR_BYTES
from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native.attention_tile import (
    HEAD_DIM,
    KEYS,
    KEYS_AT,
    QUERY_BYTES,
    ROWS,
    VALUES_AT,
    Products,
    Q,
    any_rows,
    finite,
    head_width,
    row_address,
    score_factor,
)
from vllm_nb.kernels.cpu.native.emit import BYTES, FLOATS, Builder, Value, const
from vllm_nb.kernels.cpu.native.functions import LOWEST_POWER, exp2
from vllm_nb.kernels.cpu.native.kernel import arg, helper
from vllm_nb.kernels.cpu.native.simd import (
    F,
    I,
    absolute,
    as_ints,
    bits_to_float,
    fma,
    i64,
    load,
    load_f32,
    load_i64,
    load_part,
    max_int_lanes,
    max_ints,
    nearest,
    op,
    pack_bytes,
    shift_left,
    shift_right,
    splat,
    splat_int,
    store,
    store_bytes,
    store_f32,
    store_i32,
    store_i64,
    store_ints,
    sum_int_lanes,
    sum_lanes,
    void,
    where_less,
    zeros,
)

_QUERY_GROUP, _QUERY_START = 2 * BLOCK + 16, 2 * BLOCK  # bytes of 32 dimensions; where the sum is
_QUERY_SCALE, _QUERY_LARGEST = 4 * layout.MAX_HEAD_DIM, 16256.0  # 128 * 127
_WEIGHT_QUAD, _WEIGHT_SCALE, _WEIGHT_LARGEST = 16, 4 * KEYS, 65535.0
_WEIGHT_ROW = 4 * KEYS + 64
_ROUNDING = 8388608.0  # 2**23: added to a float below it, leaves the nearest integer in the low bits
_PIECES = KEYS // TILE  # sub-blocks of a partition
_KEY_GROUP = TILE * BLOCK  # bytes of 16 keys' 32 dimensions

key_bytes, value_bytes = helper(layout.int8_key_bytes), helper(layout.int8_value_bytes)


def products() -> Products:
    return Products(_load_rows, _score_keys(), _softmax, _weigh_values())


@helper
def _load_rows(args: int, seq: int, head: int, tile: int, rows: int, room: int) -> None:
    head_dim, factor = arg(args, HEAD_DIM), score_factor(args)
    for row in range(rows):
        q, out = row_address(args, arg(args, Q), seq, head, tile * ROWS + row), room + QUERY_BYTES * row
        greatest = splat_int(0)  # compared as integers, where NaN is greater than all: it must reach the scale
        for i in range(0, head_dim, TILE):
            greatest = max_ints(greatest, as_ints(absolute(load_part(q + 4 * i, min(TILE, head_dim - i), 0.0))))
        largest = bits_to_float(max_int_lanes(greatest))
        inverse = _QUERY_LARGEST / largest if largest > 0.0 else 0.0
        for i in range(0, head_dim, BLOCK):
            group, rest = out + i // BLOCK * _QUERY_GROUP, head_dim - i
            first = _split_query(load_part(q + 4 * i, min(TILE, rest), 0.0), inverse, group)
            second = _split_query(load_part(q + 4 * (i + TILE), min(TILE, rest - TILE), 0.0), inverse, group + TILE)
            store_i32(group + _QUERY_START, -sum_int_lanes(first + second))
        store_f32(out + _QUERY_SCALE, largest / _QUERY_LARGEST * factor)


@helper
def _split_query(x: Any, inverse: float, out: int) -> Any:
    """16 floats times `inverse` -> high and low bytes, stored, and the integers that they are."""
    whole = nearest(x * splat(inverse))
    high = shift_right(whole + splat_int(64), 7)
    store_bytes(out, pack_bytes(high))
    store_bytes(out + BLOCK, pack_bytes(whole - shift_left(high, 7)))
    return whole


@op(I, F)
def split_quads(b: Builder, x: Value) -> Value:
    """Floats whose bits end in 16-bit numbers -> for each 4 of them the low bytes, the high bytes, and 8 others."""
    quad = [0, 4, 8, 12, 1, 5, 9, 13, *[2] * 8]
    lanes = ir.Constant(ir.VectorType(emit.i32, 64), [16 * n + byte for n in range(4) for byte in quad])
    numbers = b.bitcast(x, BYTES)
    return b.bitcast(b.shuffle_vector(numbers, numbers, lanes), emit.INTS)


def _broadcast(b: Builder, address: Value, kind: Any = emit.i32) -> Value:
    return emit.splat(b, emit.load(b, address, kind))


def _bytes_at(b: Builder, address: Value) -> Value:
    """4 bytes in each of 16 lanes."""
    return b.bitcast(_broadcast(b, address), BYTES)


def _load_bytes(b: Builder, address: Value, ahead: Value) -> Value:
    """A vector. What lies `ahead` of it, a partition as a rule, is fetched meanwhile: neighbours in a table of blocks
    are often neighbours in memory."""
    emit.prefetch(b, b.add(address, ahead), near=False)
    return emit.load(b, address, BYTES)


def _load_scales(b: Builder, address: Value, ahead: Value) -> Value:
    emit.prefetch(b, b.add(address, ahead), near=False)
    return emit.load_halves(b, address)


@op(F, i64, i64)
def load_value_scales(b: Builder, address: Value, ahead: Value) -> Value:
    return _load_scales(b, address, ahead)


def _join(b: Builder, high: Value, low: Value, bits: int) -> Value:
    """2**bits * high + low, as floats"""
    return b.sitofp(b.add(b.shl(high, emit.int_vector(bits)), low), FLOATS)


def _together(rows: int) -> int:
    """Key sub-blocks, or vectors of values' dimensions, whose dots share the loads of the other side: up to 24 sums
    hide the latency of a dot, and fit into 32 registers."""
    return 4 if rows <= 3 else 2 if rows <= 6 else 1


def _singly(rows: int) -> int:
    """The same with fewer registers."""
    return 1


def _dots(b: Builder, queries: list[Value], keys: list[Value], ahead: Value) -> list[list[Value]]:
    """Of 32 dimensions of some rows and sub-blocks, given their addresses: 128 * high + low, as floats."""
    starts = [_broadcast(b, b.add(q, const(_QUERY_START))) for q in queries]
    dots = [[[start, emit.int_vector(0)] for _ in keys] for start in starts]
    for quad in range(QUADS):
        vectors = [_load_bytes(b, b.add(key, const(VECTOR_BYTES * quad)), ahead) for key in keys]
        for q, mine in zip(queries, dots, strict=True):
            for part in range(2):
                other = _bytes_at(b, b.add(q, const(BLOCK * part + 4 * quad)))
                for vector, parts in zip(vectors, mine, strict=True):
                    parts[part] = emit.dot_bytes(b, parts[part], vector, other)
    return [[_join(b, high, low, 7) for high, low in mine] for mine in dots]


def _scores_tile(rows: int, pieces: int) -> Any:
    """-> intrinsic (table of addresses, groups of 32 dimensions, where their scales are, queries, out, how far to fetch
    ahead)"""

    @op(void, i64, i64, i64, i64, i64, i64)
    def tile(b: Builder, table: Value, groups: Value, scales: Value, queries: Value, out: Value, ahead: Value) -> None:
        keys = [emit.load(b, b.add(table, const(8 * piece)), emit.i64) for piece in range(pieces)]
        totals = [[emit.variable(b, emit.float_vector(0.0)) for _ in keys] for _ in range(rows)]
        with emit.for_range(b, groups) as group:
            k = [emit.offset(b, key, _KEY_GROUP, group) for key in keys]
            q = [emit.offset(b, queries, _QUERY_GROUP, group, QUERY_BYTES * row) for row in range(rows)]
            dots = _dots(b, q, k, ahead)
            factors = [_load_scales(b, emit.offset(b, b.add(key, scales), 2 * TILE, group), ahead) for key in keys]
            for mine, sums in zip(dots, totals, strict=True):
                for dot, factor, total in zip(mine, factors, sums, strict=True):
                    b.store(emit.fma(b, dot, factor, b.load(total)), total)
        for row, sums in enumerate(totals):
            scale = _broadcast(b, b.add(queries, const(QUERY_BYTES * row + _QUERY_SCALE)), emit.f32)
            for piece, total in enumerate(sums):
                at = b.add(out, const(4 * (TILE * piece + KEYS * row)))
                emit.store(b, at, b.fmul(b.load(total), scale))

    return tile


def _values_tile(rows: int, vectors: int) -> Any:
    """-> intrinsic (table of addresses, pieces, offset of 16 dimensions, weights, out, out stride in floats)"""

    @op(void, i64, i64, i64, i64, i64, i64)
    def tile(b: Builder, table: Value, pieces: Value, at: Value, weights: Value, out: Value, stride: Value) -> None:
        ahead = emit.offset(
            b, const(_PIECES * layout.int8_value_bytes(0)), _PIECES * TILE, stride
        )  # a partition's values
        dots = [[[emit.variable(b, emit.int_vector(0)) for _ in range(2)] for _ in range(vectors)] for _ in range(rows)]
        with emit.for_range(b, pieces) as piece:
            values = b.add(emit.load(b, emit.offset(b, table, 8, piece), emit.i64), at)
            quads = emit.offset(b, weights, 4 * TILE, piece)
            for quad in range(TILE // 4):
                loaded = [
                    _load_bytes(b, b.add(values, const(TILE * TILE * vector + VECTOR_BYTES * quad)), ahead)
                    for vector in range(vectors)
                ]
                for row, mine in enumerate(dots):
                    for part in range(2):
                        weight = _bytes_at(b, b.add(quads, const(_WEIGHT_ROW * row + _WEIGHT_QUAD * quad + 4 * part)))
                        for vector, parts in zip(loaded, mine, strict=True):
                            b.store(emit.dot_bytes(b, b.load(parts[part]), weight, vector), parts[part])
        for row, mine in enumerate(dots):
            scale = _broadcast(b, b.add(weights, const(_WEIGHT_ROW * row + _WEIGHT_SCALE)), emit.f32)
            for vector, (low, high) in enumerate(mine):
                target = emit.offset(b, out, 4, b.mul(stride, const(row)), 4 * TILE * vector)
                # the integer is at most 65535 * 127 * 256 keys, less than 2**31
                emit.store(b, target, b.fmul(_join(b, b.load(high), b.load(low), 8), scale))

    return tile


def _score_keys() -> Any:
    count = _together if emit.many_registers() else _singly
    multiply = any_rows(lambda rows: _scores_tile(rows, count(rows)))
    multiply_one, at_once = any_rows(lambda rows: _scores_tile(rows, 1)), helper(count)

    @helper
    def score(args: int, rows: int, keys: int, queries: int, scores: int, table: int) -> None:
        head_dim, pieces = arg(args, HEAD_DIM), keys // TILE
        groups, size, addresses = (head_dim + BLOCK - 1) // BLOCK, key_bytes(head_dim), table + 8 * _PIECES
        for n in range(pieces):
            store_i64(addresses + 8 * n, arg(args, KEYS_AT) + load_i64(table + 8 * n) * size)
        scales, ahead = _KEY_GROUP * groups, _PIECES * size
        step = at_once(rows)
        whole = pieces // step * step
        for n in range(0, whole, step):
            multiply(rows, addresses + 8 * n, groups, scales, queries, scores + 4 * TILE * n, ahead)
        for n in range(whole, pieces):
            multiply_one(rows, addresses + 8 * n, groups, scales, queries, scores + 4 * TILE * n, ahead)

    return score


@helper
def _softmax(
    args: int, rows: int, keys: int, scores: int, maxima: int, totals: int, weights: int, spare: int, table: int
) -> None:  # fmt: skip
    width, lowest = head_width(args), splat(LOWEST_POWER)
    scales = arg(args, VALUES_AT) + TILE * width
    for i in range(0, keys, TILE):
        at = scales + load_i64(table + i // 2) * value_bytes(width)
        store(spare + 4 * i, load_value_scales(at, _PIECES * value_bytes(width)))
    for row in range(rows):
        mine = scores + 4 * KEYS * row
        top, total, largest = finite(load_f32(maxima + 4 * row)), zeros(), splat_int(0)
        for i in range(0, keys, TILE):
            x = load(mine + 4 * i) - splat(top)
            p = exp2(x)
            total = total + p
            # the scale of a key that may not be seen can be anything
            weight = where_less(x, lowest, zeros(), p * load(spare + 4 * i))
            store(mine + 4 * i, weight)
            largest = max_ints(largest, as_ints(weight))
        store_f32(totals + 4 * row, sum_lanes(total))
        _split_weights(mine, keys, bits_to_float(max_int_lanes(largest)), weights + _WEIGHT_ROW * row)


@helper
def _split_weights(x: int, keys: int, greatest: float, out: int) -> None:
    """A row of weights, the greatest of which (or NaN) is known -> bytes."""
    inverse = splat(_WEIGHT_LARGEST / greatest if greatest > 0.0 else 0.0)
    for i in range(0, keys, TILE):
        store_ints(out + 4 * i, split_quads(fma(load(x + 4 * i), inverse, splat(_ROUNDING))))
    store_f32(out + _WEIGHT_SCALE, greatest / _WEIGHT_LARGEST)


def _weigh_values() -> Any:
    count = _together if emit.many_registers() else _singly
    multiply = any_rows(lambda rows: _values_tile(rows, count(rows)))
    multiply_one, at_once = any_rows(lambda rows: _values_tile(rows, 1)), helper(count)

    @helper
    def weigh(args: int, rows: int, valid: int, weights: int, slot: int, spare: int, table: int) -> None:
        pieces, width = (valid + TILE - 1) // TILE, head_width(args)
        for n in range(pieces):
            store_i64(table + 8 * n, arg(args, VALUES_AT) + load_i64(table + 8 * n) * value_bytes(width))
        step = TILE * at_once(rows)
        whole = width // step * step
        for i in range(0, whole, step):
            multiply(rows, table, pieces, TILE * i, weights, slot + 4 * i, width)
        for i in range(whole, width, TILE):
            multiply_one(rows, table, pieces, TILE * i, weights, slot + 4 * i, width)

    return weigh
