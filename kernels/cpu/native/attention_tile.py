"""Attention of one row tile over one partition of keys, and how results are merged; see `attention`.

Results live in slots: float32 weighted sums of values [8, width], maxima [8], totals [8].
"""

from collections.abc import Callable
from typing import Any

from vllm_nb.kernels.cpu import layout
from vllm_nb.kernels.cpu.formats import TILE
from vllm_nb.kernels.cpu.native.activation import soft_cap
from vllm_nb.kernels.cpu.native.functions import exp
from vllm_nb.kernels.cpu.native.kernel import arg, helper
from vllm_nb.kernels.cpu.native.simd import (
    Floats,
    bits_to_float,
    fma,
    lane_numbers,
    load,
    load_f32,
    load_i32,
    load_i64,
    load_ints,
    load_part,
    max_lanes,
    maximum,
    splat,
    splat_int,
    store,
    store_bfloats,
    store_f32,
    store_i64,
    store_ints,
    store_part,
    sum_lanes,
    where_less_ints,
    zeros,
)
from vllm_nb.kernels.cpu.native.tile import float_pieces_tile

ROWS, KEYS = layout.ATTENTION_ROWS, layout.ATTENTION_KEYS
QUERY_BYTES = 4 * layout.MAX_HEAD_DIM + 64  # a row of queries: fixed, and no power of two, which would share cache sets
MINUS_INFINITY = float("-inf")
_VALUE_BYTES = {"bf16": 2, "f32": 4}

# the arguments of the kernel, by place
(
    Q, OUT, KEYS_AT, VALUES_AT, STARTS, LENGTHS, TABLES, TABLE_STRIDE, HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE, SCALE,
    WINDOW, SOFTCAP, SLOTS, NUM_SLOTS,
) = range(17)  # fmt: skip


@helper
def head_width(args: int) -> int:
    """The head size, rounded up to whole vectors."""
    return (arg(args, HEAD_DIM) + TILE - 1) // TILE * TILE


@helper
def group_size(args: int) -> int:
    """Query heads that share one KV head."""
    return arg(args, HEADS) // arg(args, KV_HEADS)


@helper
def queries(args: int, seq: int) -> tuple[int, int, int]:
    """(first token, number of tokens, position of the first) of a sequence in this step"""
    first = load_i32(arg(args, STARTS) + 4 * seq)
    count = load_i32(arg(args, STARTS) + 4 * seq + 4) - first
    return first, count, load_i32(arg(args, LENGTHS) + 4 * seq) - count


@helper
def tile_rows(args: int, seq: int, tile: int) -> int:
    """How many of a tile's rows there are."""
    return min(ROWS, queries(args, seq)[1] * group_size(args) - tile * ROWS)


@helper
def first_key(args: int, position: int) -> int:
    """The first key that a query at `position` may see."""
    window = arg(args, WINDOW)
    return max(0, position + 1 - window) if window != 0 else 0


@helper
def slot_bytes(width: int) -> int:
    return 4 * ROWS * (width + 2)


@helper
def maxima_of(slot: int, width: int) -> int:
    return slot + 4 * ROWS * width


@helper
def totals_of(slot: int, width: int) -> int:
    return maxima_of(slot, width) + 4 * ROWS


@helper
def clear(slot: int, width: int) -> None:
    """The result over no keys at all."""
    for i in range(0, ROWS * width, TILE):
        store(slot + 4 * i, zeros())
    for row in range(ROWS):
        store_f32(maxima_of(slot, width) + 4 * row, MINUS_INFINITY)
        store_f32(totals_of(slot, width) + 4 * row, 0.0)


@helper
def merge_row(total: int, part: int, row: int, width: int) -> None:
    """Add a partition's result for a row to the running one; both are slots."""
    maxima, totals = maxima_of(0, width) + 4 * row, totals_of(0, width) + 4 * row
    old, new = load_f32(total + maxima), load_f32(part + maxima)
    if new == MINUS_INFINITY:
        return
    top = max(old, new) if old == old else old  # NaN stays
    keep, take = exp(splat(old) - splat(top)), exp(splat(new) - splat(top))
    store_f32(total + maxima, top)
    joined = fma(splat(load_f32(total + totals)), keep, splat(load_f32(part + totals)) * take)
    store_f32(total + totals, max_lanes(joined))
    for i in range(0, width, TILE):
        at = 4 * (width * row + i)
        store(total + at, fma(load(total + at), keep, load(part + at) * take))


@helper
def row_address(args: int, base: int, seq: int, head: int, flat: int) -> int:
    """Where row `flat` of a KV head's rows lies in q or out, [T, Hq * D]."""
    group = group_size(args)
    token = queries(args, seq)[0] + flat // group
    return base + 4 * arg(args, HEAD_DIM) * (arg(args, HEADS) * token + head * group + flat % group)


@helper
def write_row(args: int, slot: int, seq: int, head: int, tile: int, row: int, width: int) -> None:
    """A finished row, divided by its total, to where it belongs."""
    head_dim = arg(args, HEAD_DIM)
    out = row_address(args, arg(args, OUT), seq, head, tile * ROWS + row)
    total = splat(load_f32(totals_of(slot, width) + 4 * row))
    for i in range(0, head_dim, TILE):
        store_part(out + 4 * i, load(slot + 4 * (width * row + i)) / total, min(TILE, head_dim - i))


@helper
def _mask_scores(args: int, scores: int, keys: int, key: int, seen: int, end: int) -> float:
    """Scale and cap a row's scores; those of keys before `seen` or from `end` on become -inf. Returns the greatest."""
    scale, cap = splat(bits_to_float(arg(args, SCALE))), bits_to_float(arg(args, SOFTCAP))
    lowest = splat(MINUS_INFINITY)
    greatest = lowest
    for i in range(0, keys, TILE):
        x = load(scores + 4 * i) * scale
        if cap != 0.0:
            x = soft_cap(x, splat(cap))
        if key + i < seen or key + i + TILE > end:
            numbers = lane_numbers() + splat_int(key + i)
            x = where_less_ints(numbers, splat_int(end), x, lowest)
            x = where_less_ints(numbers, splat_int(seen), lowest, x)
        store(scores + 4 * i, x)
        greatest = maximum(greatest, x)
    return max_lanes(greatest)


@helper
def _store_bf16(row: int, i: int, x: Floats) -> None:
    store_bfloats(row + 2 * i, x)


@helper
def _store_f32(row: int, i: int, x: Floats) -> None:
    store(row + 4 * i, x)


_STORE = {"bf16": _store_bf16, "f32": _store_f32}


@helper
def _copy_valid_bf16(source: int, out: int, width: int, valid: int) -> None:
    """A sub-block's values, with zeros for the tokens from `valid` on: what lies there may be anything, even NaN."""
    for i in range(0, TILE * width // 2, TILE):
        token = i // TILE % 8 * 2
        kept = 0 if token >= valid else (0xFFFF if token + 1 >= valid else -1)
        store_ints(out + 4 * i, load_ints(source + 4 * i) & splat_int(kept))


@helper
def _copy_valid_f32(source: int, out: int, width: int, valid: int) -> None:
    for i in range(0, TILE * width, TILE):
        store(out + 4 * i, load(source + 4 * i) if i // TILE % TILE < valid else zeros())


_COPY_VALID = {"bf16": _copy_valid_bf16, "f32": _copy_valid_f32}


def _any_rows(kind: str, row_bytes: int) -> Any:
    """A helper that picks the tile of 1 to 8 rows, which are `row_bytes` apart in x."""
    one, two, three, four, five, six, seven, eight = (
        float_pieces_tile(kind, rows, row_bytes) for rows in range(1, ROWS + 1)
    )

    @helper
    def multiply(rows: int, table: int, pieces: int, steps: int, x: int, out: int, stride: int) -> None:
        if rows == 8:
            eight(table, pieces, steps, x, out, stride)
        elif rows == 1:
            one(table, pieces, steps, x, out, stride)
        elif rows == 2:
            two(table, pieces, steps, x, out, stride)
        elif rows == 3:
            three(table, pieces, steps, x, out, stride)
        elif rows == 4:
            four(table, pieces, steps, x, out, stride)
        elif rows == 5:
            five(table, pieces, steps, x, out, stride)
        elif rows == 6:
            six(table, pieces, steps, x, out, stride)
        else:
            seven(table, pieces, steps, x, out, stride)

    return multiply


def load_queries(kind: str) -> Any:
    """-> helper that puts a tile's rows of q into `room`, in the cache's type."""
    store_row = _STORE[kind]

    @helper
    def load_rows(args: int, seq: int, head: int, tile: int, rows: int, room: int, width: int) -> None:
        head_dim = arg(args, HEAD_DIM)
        for row in range(rows):
            q = row_address(args, arg(args, Q), seq, head, tile * ROWS + row)
            target = room + QUERY_BYTES * row
            for i in range(0, width, TILE):
                store_row(target, i, load_part(q + 4 * i, min(TILE, head_dim - i), 0.0))

    return load_rows


def _score_keys(kind: str) -> Any:
    """-> helper: q times each sub-block of keys; it leaves the sub-blocks' byte offsets in the table."""
    size = _VALUE_BYTES[kind]
    pair = 4 // size  # dimensions in one step of a tile
    multiply = _any_rows(kind, QUERY_BYTES)

    @helper
    def score(
        args: int, seq: int, head: int, rows: int, key: int, keys: int, room: int, scores: int, table: int, width: int
    ) -> None:  # fmt: skip
        block_size = arg(args, BLOCK_SIZE)
        blocks = arg(args, TABLES) + 4 * arg(args, TABLE_STRIDE) * seq
        one_piece = table + 8 * KEYS // TILE
        for i in range(0, keys, TILE):
            block, inside = (key + i) // block_size, (key + i) % block_size // TILE
            sub_block = load_i32(blocks + 4 * block) * (block_size // TILE) + inside
            at = (sub_block * arg(args, KV_HEADS) + head) * TILE * width * size
            store_i64(table + 8 * (i // TILE), at)
            store_i64(one_piece, arg(args, KEYS_AT) + at)
            multiply(rows, one_piece, 1, width // pair, room, scores + 4 * i, KEYS)

    return score


def _weigh_values(kind: str) -> Any:
    """-> helper: probabilities times the values of the table's sub-blocks, 16 dimensions at a time."""
    size, copy_valid = _VALUE_BYTES[kind], _COPY_VALID[kind]
    pair = 4 // size  # keys in one step of a tile
    multiply = _any_rows(kind, size * KEYS)

    @helper
    def weigh(
        args: int, rows: int, valid: int, probabilities: int, slot: int, spare: int, table: int, width: int
    ) -> None:
        pieces = (valid + TILE - 1) // TILE
        for n in range(pieces):
            store_i64(table + 8 * n, arg(args, VALUES_AT) + load_i64(table + 8 * n))
        if valid % TILE != 0:  # only in a sequence's last sub-block
            copy_valid(load_i64(table + 8 * (pieces - 1)), spare, width, valid % TILE)
            store_i64(table + 8 * (pieces - 1), spare)
        for i in range(0, width, TILE):
            multiply(rows, table, pieces, TILE // pair, probabilities, slot + 4 * i, width)
            for n in range(pieces):
                store_i64(table + 8 * n, load_i64(table + 8 * n) + TILE * TILE * size)

    return weigh


@helper
def private_bytes(width: int) -> int:
    """Of `room`: queries, scores, probabilities, one sub-block of values, and a table."""
    return QUERY_BYTES * ROWS + 8 * ROWS * KEYS + 4 * TILE * width + 16 * KEYS // TILE


def attend(kind: str) -> Callable[..., None]:
    """-> helper: one partition's result for a tile, whose queries are in `room` already."""
    score, weigh = _score_keys(kind), _weigh_values(kind)
    size, store_row = _VALUE_BYTES[kind], _STORE[kind]

    @helper
    def softmax_row(scores: int, out: int, keys: int, top: float) -> float:
        """exp(score - top), for all keys; returns the sum. top -inf: no key in sight, avoid -inf - -inf."""
        total = zeros()
        for i in range(0, keys, TILE):
            p = exp(load(scores + 4 * i) - splat(top)) if top != MINUS_INFINITY else zeros()
            total = total + p
            store_row(out, i, p)
        return sum_lanes(total)

    @helper
    def attend_partition(
        args: int, seq: int, head: int, tile: int, partition: int, rows: int, room: int, slot: int, width: int
    ) -> None:  # fmt: skip
        scores = room + QUERY_BYTES * ROWS
        probabilities = scores + 4 * ROWS * KEYS
        spare = probabilities + 4 * ROWS * KEYS
        table = spare + 4 * TILE * width
        _, count, position = queries(args, seq)
        group, key = group_size(args), partition * KEYS
        end = position + (tile * ROWS + rows - 1) // group + 1  # keys that the last row may see
        keys = (min(KEYS, end - key) + TILE - 1) // TILE * TILE
        score(args, seq, head, rows, key, keys, room, scores, table, width)
        for row in range(rows):
            query = position + (tile * ROWS + row) // group
            mine = scores + 4 * KEYS * row
            top = _mask_scores(args, mine, keys, key, first_key(args, query), query + 1)
            store_f32(maxima_of(slot, width) + 4 * row, top)
            total = softmax_row(mine, probabilities + size * KEYS * row, keys, top)
            store_f32(totals_of(slot, width) + 4 * row, total)
        valid = min(keys, position + count - key)  # of these keys, those that are in the cache
        weigh(args, rows, valid, probabilities, slot, spare, table, width)

    return attend_partition
