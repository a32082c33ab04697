"""Attention's products with the 8-bit cache (layout: kv.py): what `attention_tile.attend` needs.

The cache is read as it is, by exact integer dots. Queries are rounded as activations are before a product with weights;
weights of values are held in 16 bits, as a high and a low byte: next to a great one many small ones still count.

    q           for each 32 dimensions: int8 [32], int32 -128 times the sum of their numbers (what the zero point of
                keys adds to a dot), float32 scale, and 8 bytes unused
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
    fetcher,
    finite,
    head_width,
    row_address,
    score_factor,
)
from vllm_nb.kernels.cpu.native.emit import BYTES, FLOATS, Builder, Value, const
from vllm_nb.kernels.cpu.native.functions import rough_exp2
from vllm_nb.kernels.cpu.native.halves import load_halves
from vllm_nb.kernels.cpu.native.kernel import arg, helper
from vllm_nb.kernels.cpu.native.simd import (
    F,
    I,
    absolute,
    as_ints,
    bits_to_float,
    fma,
    i64,
    lane_numbers,
    load,
    load_f32,
    load_i64,
    load_part,
    max_int_lanes,
    max_ints,
    nearest,
    op,
    pack_bytes,
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
    where_less_ints,
    zeros,
)
from vllm_nb.kernels.cpu.tuning import tuning

_QUERY_GROUP, _QUERY_START, _QUERY_SCALE = BLOCK + 16, BLOCK, BLOCK + 4  # of 32 dimensions: bytes, and where what is
_WEIGHT_QUAD, _WEIGHT_SCALE, _WEIGHT_LARGEST = 16, 4 * KEYS, 65535.0
_WEIGHT_ROW = 4 * KEYS + 64
_ROUNDING = 8388608.0  # 2**23: added to a float below it, leaves the nearest integer in the low bits
_PIECES = KEYS // TILE  # sub-blocks of a partition
# What is read soon is fetched meanwhile, and one line in a while that is so many bytes further off: six sub-blocks of
# 64 dimensions. Neighbours in a table of blocks are often neighbours in memory.
_TUNING, _FURTHER = tuning(), 6528
_AHEAD = _TUNING.keys_ahead
_KEY_GROUP = TILE * BLOCK  # bytes of 16 keys' 32 dimensions
_GROUP_BYTES = _KEY_GROUP + 2 * TILE  # with their scales

key_bytes, value_bytes = helper(layout.int8_key_bytes), helper(layout.int8_value_bytes)


def products() -> Products:
    return Products(_load_rows, fetcher(key_bytes, value_bytes), _score_keys(), _softmax, _weigh_values())


@helper
def _load_rows(args: int, seq: int, head: int, tile: int, rows: int, room: int) -> None:
    head_dim, factor = arg(args, HEAD_DIM), score_factor(args)
    for row in range(rows):
        q, out = row_address(args, arg(args, Q), seq, head, tile * ROWS + row), room + QUERY_BYTES * row
        for i in range(0, head_dim, BLOCK):
            count = head_dim - i
            first = load_part(q + 4 * i, min(TILE, count), 0.0)
            second = load_part(q + 4 * (i + TILE), min(TILE, count - TILE), 0.0)
            _store_query_group(first, second, factor, out + i // BLOCK * _QUERY_GROUP)


@helper
def _store_query_group(first: Any, second: Any, factor: float, out: int) -> None:
    """32 dimensions of a query."""
    # compared as integers, where NaN is greater than all: it must reach the scale
    greatest = bits_to_float(max_int_lanes(max_ints(as_ints(absolute(first)), as_ints(absolute(second)))))
    inverse = splat(127.0 / greatest if greatest > 0.0 else 0.0)
    low, high = nearest(first * inverse), nearest(second * inverse)
    store_bytes(out, pack_bytes(low))
    store_bytes(out + TILE, pack_bytes(high))
    store_i32(out + _QUERY_START, -128 * sum_int_lanes(low + high))
    store_f32(out + _QUERY_SCALE, greatest / 127.0 * factor)


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


def _fetch_lines(b: Builder, start: Value, first: int, count: int) -> None:
    """Ask for some cache lines, counted from `start`. They are asked for in their order in memory, whatever the order
    of their use: then the processor sees a stream, and runs ahead of it by itself."""
    for line in range(first, first + count):
        emit.prefetch(b, b.add(start, const(layout.CACHE_LINE * line)), near=_TUNING.fetch_near)
    if count > 2:  # one line much further off leads it on
        emit.prefetch(b, b.add(start, const(layout.CACHE_LINE * first + _FURTHER)), near=False)


@op(void, i64)
def fetch_two_lines(b: Builder, start: Value) -> None:
    _fetch_lines(b, start, 0, 2)


def _join(b: Builder, high: Value, low: Value, bits: int) -> Value:
    """2**bits * high + low, as floats"""
    return b.sitofp(b.add(b.shl(high, emit.int_vector(bits)), low), FLOATS)


def _singly(rows: int) -> int:
    """With fewer registers, or where memory is to be read in order: one."""
    return 1


def _key_pieces(rows: int) -> int:
    """Sub-blocks of keys whose dots share the loads of queries: up to 24 sums hide the latency of a dot, and fit into
    32 registers."""
    return 4 if rows <= 6 else 2


def _value_vectors(rows: int) -> int:
    """Vectors of values' dimensions whose dots share the loads of weights. Two sums each."""
    return 4 if rows <= 3 else 2 if rows <= 6 else 1


def _dots(b: Builder, queries: list[Value], keys: list[Value], ahead: Value) -> list[list[Value]]:
    """Of 32 dimensions of some rows and sub-blocks, given their addresses, as floats; fetches as much from `ahead`."""
    starts = [_broadcast(b, b.add(q, const(_QUERY_START))) for q in queries]
    dots = [[start] * len(keys) for start in starts]
    lines = -(-_GROUP_BYTES * len(keys) // layout.CACHE_LINE)
    for quad in range(QUADS):
        first, stop = (lines * n // QUADS for n in (quad, quad + 1))
        _fetch_lines(b, ahead, first, stop - first)
        vectors = [emit.load(b, b.add(key, const(VECTOR_BYTES * quad)), BYTES) for key in keys]
        for q, mine in zip(queries, dots, strict=True):
            other = _bytes_at(b, b.add(q, const(4 * quad)))
            mine[:] = [emit.dot_bytes(b, dot, vector, other) for dot, vector in zip(mine, vectors, strict=True)]
    return [[b.sitofp(dot, FLOATS) for dot in mine] for mine in dots]


def _scores_tile(rows: int, pieces: int) -> Any:
    """-> intrinsic (table of addresses, groups of 32 dimensions, where their scales are, queries, out, what to fetch
    meanwhile)"""

    @op(void, i64, i64, i64, i64, i64, i64)
    def tile(b: Builder, table: Value, groups: Value, scales: Value, queries: Value, out: Value, ahead: Value) -> None:
        keys = [emit.load(b, b.add(table, const(8 * piece)), emit.i64) for piece in range(pieces)]
        totals = [[emit.variable(b, emit.float_vector(0.0)) for _ in keys] for _ in range(rows)]
        with emit.for_range(b, groups) as group:
            k = [emit.offset(b, key, _KEY_GROUP, group) for key in keys]
            q = [emit.offset(b, queries, _QUERY_GROUP, group, QUERY_BYTES * row) for row in range(rows)]
            dots = _dots(b, q, k, emit.offset(b, ahead, _GROUP_BYTES * pieces, group))
            factors = [emit.load_halves(b, emit.offset(b, b.add(key, scales), 2 * TILE, group)) for key in keys]
            for at, mine, sums in zip(q, dots, totals, strict=True):
                scale = _broadcast(b, b.add(at, const(_QUERY_SCALE)), emit.f32)
                for dot, factor, total in zip(mine, factors, sums, strict=True):
                    b.store(emit.fma(b, dot, b.fmul(factor, scale), b.load(total)), total)
        for row, sums in enumerate(totals):
            for piece, total in enumerate(sums):
                emit.store(b, b.add(out, const(4 * (TILE * piece + KEYS * row))), b.load(total))

    return tile


def _values_tile(rows: int, vectors: int) -> Any:
    """-> intrinsic (table of addresses, pieces, offset of 16 dimensions, weights, out, out stride in floats)"""

    @op(void, i64, i64, i64, i64, i64, i64)
    def tile(b: Builder, table: Value, pieces: Value, at: Value, weights: Value, out: Value, stride: Value) -> None:
        ahead = emit.offset(b, const(_AHEAD * layout.int8_value_bytes(0)), _AHEAD * TILE, stride)
        dots = [[[emit.variable(b, emit.int_vector(0)) for _ in range(2)] for _ in range(vectors)] for _ in range(rows)]
        with emit.for_range(b, pieces) as piece:
            values = b.add(emit.load(b, emit.offset(b, table, 8, piece), emit.i64), at)
            quads = emit.offset(b, weights, 4 * TILE, piece)
            scales = b.add(b.sub(values, at), b.mul(stride, const(TILE)))
            _fetch_lines(b, b.add(scales, ahead), 0, 1)
            for quad in range(TILE // 4):
                _fetch_lines(b, b.add(values, ahead), vectors * quad, vectors)
                loaded = [
                    emit.load(b, b.add(values, const(TILE * TILE * vector + VECTOR_BYTES * quad)), BYTES)
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
    count = _key_pieces if emit.many_registers() and not _TUNING.keys_in_order else _singly
    multiply = any_rows(lambda rows: _scores_tile(rows, count(rows)))
    multiply_one, at_once = any_rows(lambda rows: _scores_tile(rows, 1)), helper(count)

    @helper
    def score(args: int, rows: int, keys: int, queries: int, scores: int, table: int) -> None:
        head_dim, pieces = arg(args, HEAD_DIM), keys // TILE
        groups, size, addresses = (head_dim + BLOCK - 1) // BLOCK, key_bytes(head_dim), table + 8 * _PIECES
        for n in range(pieces):
            store_i64(addresses + 8 * n, arg(args, KEYS_AT) + load_i64(table + 8 * n) * size)
        scales, step = _KEY_GROUP * groups, at_once(rows)
        whole = pieces // step * step
        for n in range(0, whole, step):
            ahead = load_i64(addresses + 8 * n) + _AHEAD * size
            multiply(rows, addresses + 8 * n, groups, scales, queries, scores + 4 * TILE * n, ahead)
        for n in range(whole, pieces):
            ahead = load_i64(addresses + 8 * n) + _AHEAD * size
            multiply_one(rows, addresses + 8 * n, groups, scales, queries, scores + 4 * TILE * n, ahead)

    return score


@helper
def _softmax(
    args: int, rows: int, keys: int, scores: int, maxima: int, totals: int, weights: int, spare: int, table: int,
    visible: int,
) -> None:  # fmt: skip
    width = head_width(args)
    scales, own = spare, spare + 4 * KEYS
    for i in range(0, keys, TILE):
        at = arg(args, VALUES_AT) + TILE * width + load_i64(table + i // 2) * value_bytes(width)
        store(scales + 4 * i, load_halves(at))
    soon = arg(args, VALUES_AT) + (load_i64(table) + _AHEAD) * value_bytes(width)
    first, stop, greatest = -1, -1, 0.0
    for row in range(rows):
        if first != load_i64(visible + 16 * row) or stop != load_i64(visible + 16 * row + 8):
            first, stop = load_i64(visible + 16 * row), load_i64(visible + 16 * row + 8)
            greatest = _fit_scales(scales, keys, first, stop, own)
        mine, out = scores + 4 * KEYS * row, weights + _WEIGHT_ROW * row
        top, total = splat(finite(load_f32(maxima + 4 * row))), zeros()
        for i in range(0, keys, TILE):
            fetch_two_lines(soon)
            soon += 2 * layout.CACHE_LINE
            p = rough_exp2(load(mine + 4 * i) - top)
            total = total + p
            store_ints(out + 4 * i, split_quads(fma(p, load(own + 4 * i), splat(_ROUNDING))))
        store_f32(totals + 4 * row, sum_lanes(total))
        store_f32(out + _WEIGHT_SCALE, greatest / _WEIGHT_LARGEST)


@helper
def _fit_scales(scales: int, keys: int, first: int, stop: int, out: int) -> float:
    """Scales such that the greatest of the keys first to stop - 1 becomes 65535, and 0 for other keys, whose scale can
    be anything. Returns the greatest (or NaN). What a row sees decides alone, so that its neighbours do not matter."""
    largest = splat_int(0)  # compared as integers, where NaN is greater than all: it must reach the results
    for i in range(0, keys, TILE):
        numbers = lane_numbers() + splat_int(i)
        seen = where_less_ints(numbers, splat_int(stop), load(scales + 4 * i), zeros())
        seen = where_less_ints(numbers, splat_int(first), zeros(), seen)
        store(out + 4 * i, seen)
        largest = max_ints(largest, as_ints(seen))
    greatest = bits_to_float(max_int_lanes(largest))
    factor = splat(_WEIGHT_LARGEST / greatest if greatest > 0.0 else 0.0)
    for i in range(0, keys, TILE):
        store(out + 4 * i, load(out + 4 * i) * factor)
    return greatest


def _weigh_values() -> Any:
    count = _value_vectors if emit.many_registers() else _singly
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
