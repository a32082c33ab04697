"""Attention of one row tile over one partition of keys, and how results are merged; see `attention`.

Results live in slots: float32 weighted sums of values [8, width], maxima [8], totals [8].

Scores are powers of 2: what the queries are multiplied by has the factor that makes e**x of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_nb.kernels.cpu import layout
from vllm_nb.kernels.cpu.formats import TILE
from vllm_nb.kernels.cpu.native.activation import soft_cap
from vllm_nb.kernels.cpu.native.functions import LOG2_E, exp2
from vllm_nb.kernels.cpu.native.kernel import arg, helper
from vllm_nb.kernels.cpu.native.simd import (
    bits_to_float,
    fma,
    lane_numbers,
    load,
    load_f32,
    load_i32,
    max_lanes,
    maximum,
    splat,
    splat_int,
    store,
    store_f32,
    store_i64,
    store_part,
    where_less_ints,
    zeros,
)

ROWS, KEYS = layout.ATTENTION_ROWS, layout.ATTENTION_KEYS
QUERY_BYTES = 4 * layout.MAX_HEAD_DIM + 64  # a row of queries: fixed, and no power of two, which would share cache sets
MINUS_INFINITY = float("-inf")

# the arguments of the kernel, by place
(
    Q, OUT, KEYS_AT, VALUES_AT, STARTS, LENGTHS, TABLES, TABLE_STRIDE, HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE, SCALE,
    WINDOW, SOFTCAP, SLOTS, NUM_SLOTS, SUB_BLOCKS,
) = range(18)  # fmt: skip


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
def clear_row(slot: int, row: int, width: int) -> None:
    for i in range(0, width, TILE):
        store(slot + 4 * (width * row + i), zeros())
    store_f32(maxima_of(slot, width) + 4 * row, MINUS_INFINITY)
    store_f32(totals_of(slot, width) + 4 * row, 0.0)


@helper
def clear(slot: int, width: int) -> None:
    """The result over no keys at all."""
    for row in range(ROWS):
        clear_row(slot, row, width)


@helper
def merge_row(total: int, part: int, row: int, width: int) -> None:
    """Add a partition's result for a row to the running one; both are slots."""
    maxima, totals = maxima_of(0, width) + 4 * row, totals_of(0, width) + 4 * row
    old, new = load_f32(total + maxima), load_f32(part + maxima)
    if new == MINUS_INFINITY:
        return
    top = max(old, new) if old == old else old  # NaN stays
    other = exp2(splat(min(old, new)) - splat(top))  # the factor of the one that is not the top; that of the top is 1
    keep, take = (splat(1.0), other) if old >= new else (other, splat(1.0))
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
def score_factor(args: int) -> float:
    """What queries are multiplied by: the scale, and what makes a power of 2 of a power of e."""
    return bits_to_float(arg(args, SCALE)) * LOG2_E


@helper
def finite(top: float) -> float:
    """What is subtracted from scores: their maximum, unless none may be seen and all are -inf."""
    return top if top != MINUS_INFINITY else 0.0


@helper
def _bound_scores(args: int, scores: int, keys: int, key: int, seen: int, end: int) -> float:
    """Cap a row's scores; those of keys before `seen` or from `end` on become -inf. Returns the greatest."""
    cap, lowest = bits_to_float(arg(args, SOFTCAP)) * LOG2_E, splat(MINUS_INFINITY)
    if cap != 0.0:
        for i in range(0, keys, TILE):
            store(scores + 4 * i, soft_cap(load(scores + 4 * i), splat(cap)))
    if key < seen or key + keys > end:
        for i in range(0, keys, TILE):
            numbers = lane_numbers() + splat_int(key + i)
            x = where_less_ints(numbers, splat_int(end), load(scores + 4 * i), lowest)
            store(scores + 4 * i, where_less_ints(numbers, splat_int(seen), lowest, x))
    return _greatest(scores, keys)


@helper
def _greatest(x: int, count: int) -> float:
    """Of `count` floats, a multiple of 16; two chains, so that one waits less for the last comparison."""
    first = second = splat(MINUS_INFINITY)
    pairs = count // (4 * TILE) * (4 * TILE)
    for at in range(x, x + 4 * pairs, 16 * TILE):
        first = maximum(first, maximum(load(at), load(at + 4 * TILE)))
        second = maximum(second, maximum(load(at + 8 * TILE), load(at + 12 * TILE)))
    for at in range(x + 4 * pairs, x + 4 * count, 4 * TILE):
        first = maximum(first, load(at))
    return max_lanes(maximum(first, second))


@dataclass(frozen=True)
class Products:
    """A cache's part in attention, as helpers. In the table of a partition stand its sub-blocks, one in 16 keys, by
    number (head and sub-block).

    load_rows(args, seq, head, tile, rows, room): queries times `score_factor`, as `score` reads them, QUERY_BYTES a row
    score(args, rows, keys, queries, scores, table): q times keys, float32 [rows, KEYS]
    softmax(args, rows, keys, scores, maxima, totals, weights, spare, table, visible): 2**(score - maximum), which
        become weights, and their sums. visible: for each row the first key that it may see and the end, int64
        [rows, 2], counted in the partition
    weigh(args, rows, valid, weights, slot, spare, table): weights times values, float32 [rows, width]; may spoil the
        table. Only the first `valid` keys have values: what lies behind may be anything, even NaN.
    """

    load_rows: Any
    score: Any
    softmax: Any
    weigh: Any


def any_rows(make: Callable[[int], Any]) -> Any:
    """-> helper(rows, six arguments): the tile of 1 to 8 rows, as make(rows) gives it."""
    one, two, three, four, five, six, seven, eight = (make(rows) for rows in range(1, ROWS + 1))

    @helper
    def multiply(rows: int, a: int, b: int, c: int, d: int, e: int, f: int) -> None:
        if rows == 8:
            eight(a, b, c, d, e, f)
        elif rows == 1:
            one(a, b, c, d, e, f)
        elif rows == 2:
            two(a, b, c, d, e, f)
        elif rows == 3:
            three(a, b, c, d, e, f)
        elif rows == 4:
            four(a, b, c, d, e, f)
        elif rows == 5:
            five(a, b, c, d, e, f)
        elif rows == 6:
            six(a, b, c, d, e, f)
        else:
            seven(a, b, c, d, e, f)

    return multiply


@helper
def private_bytes(width: int) -> int:
    """Of `room`: queries, scores, weights, a sub-block of values or two numbers for each key, a table, and what rows
    may see."""
    return QUERY_BYTES * ROWS + ROWS * (8 * KEYS + 64) + 4 * max(TILE * width, 2 * KEYS) + 16 * KEYS // TILE + 16 * ROWS


@helper
def _fill_table(args: int, seq: int, head: int, key: int, keys: int, table: int) -> None:
    """The number of each sub-block of a head's keys, counted over heads and sub-blocks."""
    per_block, blocks = arg(args, BLOCK_SIZE) // TILE, arg(args, TABLES) + 4 * arg(args, TABLE_STRIDE) * seq
    block, inside = key // TILE // per_block, key // TILE % per_block
    for n in range(keys // TILE):
        sub_block = load_i32(blocks + 4 * block) * per_block + inside
        store_i64(table + 8 * n, head * arg(args, SUB_BLOCKS) + sub_block)
        inside += 1
        if inside == per_block:
            block, inside = block + 1, 0


def attend(products: Products) -> Callable[..., None]:
    """-> helper: one partition's result for a tile, whose queries are in `room` already."""
    score, softmax, weigh = products.score, products.softmax, products.weigh

    @helper
    def attend_partition(
        args: int, seq: int, head: int, tile: int, partition: int, rows: int, room: int, slot: int, width: int
    ) -> None:  # fmt: skip
        scores = room + QUERY_BYTES * ROWS
        weights = scores + 4 * ROWS * KEYS
        spare = weights + ROWS * (4 * KEYS + 64)
        table = spare + 4 * max(TILE * width, 2 * KEYS)
        visible = table + 16 * KEYS // TILE
        _, count, position = queries(args, seq)
        group, key = group_size(args), partition * KEYS
        end = position + (tile * ROWS + rows - 1) // group + 1  # keys that the last row may see
        keys = (min(KEYS, end - key) + TILE - 1) // TILE * TILE
        valid = min(keys, position + count - key)  # of these keys, those that are in the cache
        _fill_table(args, seq, head, key, keys, table)
        score(args, rows, keys, room, scores, table)
        maxima, totals = maxima_of(slot, width), totals_of(slot, width)
        for row in range(rows):
            query = position + (tile * ROWS + row) // group
            mine, seen = scores + 4 * KEYS * row, first_key(args, query)
            store_f32(maxima + 4 * row, _bound_scores(args, mine, keys, key, seen, query + 1))
            store_i64(visible + 16 * row, max(0, seen - key))
            store_i64(visible + 16 * row + 8, min(keys, query + 1 - key))
        softmax(args, rows, keys, scores, maxima, totals, weights, spare, table, visible)
        weigh(args, rows, valid, weights, slot, spare, table)

    return attend_partition
