"""Attention of one row tile over one partition of keys, and how results are merged; see `attention`.

Results live in slots: float32 weighted sums of values [8, width], maxima [16], totals [16], of which 8 are used.

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
    load_i64,
    max_lanes,
    maximum,
    prefetch_far,
    splat,
    splat_int,
    store,
    store_f32,
    store_i64,
    store_part,
    where_less,
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


slot_bytes = helper(layout.attention_slot_bytes)


@helper
def maxima_of(slot: int, width: int) -> int:
    return slot + 4 * ROWS * width


@helper
def totals_of(slot: int, width: int) -> int:
    return maxima_of(slot, width) + 4 * TILE


@helper
def clear(slot: int, first: int, stop: int, width: int) -> None:
    """The result over no keys at all, for the rows first to stop - 1."""
    for i in range(first * width, stop * width, TILE):
        store(slot + 4 * i, zeros())
    store(maxima_of(slot, width), splat(MINUS_INFINITY))
    store(totals_of(slot, width), zeros())


@helper
def merge(total: int, part: int, first: int, stop: int, width: int, spare: int) -> None:
    """Add a partition's result to the running one, for the rows first to stop - 1; both are slots. spare: 128 bytes."""
    maxima, totals = maxima_of(0, width), totals_of(0, width)
    old, new = load(total + maxima), load(part + maxima)
    top = maximum(new, old)  # NaN in the running one stays
    base = where_less(splat(MINUS_INFINITY), top, top, zeros())  # nothing seen yet: all are -inf
    keep, take = exp2(old - base), exp2(new - base)  # one of them is 1, or nothing has been seen and both are 0
    store(total + maxima, top)
    store(total + totals, fma(load(total + totals), keep, load(part + totals) * take))
    store(spare, keep)
    store(spare + 4 * TILE, take)
    for row in range(first, stop):
        if load_f32(spare + 4 * TILE + 4 * row) == 0.0:
            continue  # nothing for it, so that not even NaN in what others see reaches it
        old, new = splat(load_f32(spare + 4 * row)), splat(load_f32(spare + 4 * TILE + 4 * row))
        for at in range(4 * width * row, 4 * width * (row + 1), 4 * TILE):
            store(total + at, fma(load(total + at), old, load(part + at) * new))


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
    fetch(args, table, pieces): asks for the first sub-blocks of the table, which are read soon
    score(args, rows, keys, queries, scores, table): q times keys, float32 [rows, KEYS]
    softmax(args, rows, keys, scores, maxima, totals, weights, spare, table, visible): 2**(score - maximum), which
        become weights, and their sums. visible: for each row the first key that it may see and the end, int64
        [rows, 2], counted in the partition
    weigh(args, rows, valid, weights, slot, spare, table): weights times values, float32 [rows, width]; may spoil the
        table. Only the first `valid` keys have values: what lies behind may be anything, even NaN.
    """

    load_rows: Any
    fetch: Any
    score: Any
    softmax: Any
    weigh: Any


def fetcher(key_bytes: Any, value_bytes: Any) -> Any:
    """-> helper `fetch`. The bytes of a sub-block of keys and of values, as helpers of the head size and the width."""

    @helper
    def fetch_memory(at: int, size: int) -> None:
        for line in range(at, at + size, layout.CACHE_LINE):
            prefetch_far(line)

    @helper
    def fetch(args: int, table: int, pieces: int) -> None:
        size = key_bytes(arg(args, HEAD_DIM))
        for n in range(pieces):
            fetch_memory(arg(args, KEYS_AT) + load_i64(table + 8 * n) * size, size)
        size = value_bytes(head_width(args))
        for n in range(pieces):
            fetch_memory(arg(args, VALUES_AT) + load_i64(table + 8 * n) * size, size)

    return fetch


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
def table_of(room: int, width: int) -> int:
    return room + private_bytes(width) - 16 * KEYS // TILE - 16 * ROWS


@helper
def fill_table(args: int, seq: int, head: int, key: int, keys: int, table: int) -> None:
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
        table = table_of(room, width)
        visible = table + 16 * KEYS // TILE
        _, count, position = queries(args, seq)
        group, key = group_size(args), partition * KEYS
        end = position + (tile * ROWS + rows - 1) // group + 1  # keys that the last row may see
        keys = (min(KEYS, end - key) + TILE - 1) // TILE * TILE
        valid = min(keys, position + count - key)  # of these keys, those that are in the cache
        fill_table(args, seq, head, key, keys, table)
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
