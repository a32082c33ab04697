"""attention_<kind>: causal attention over the paged cache (layout: kv.py), for prefill and decode alike.

Rows are (query, head) pairs of one KV head, 8 in a tile, so that keys and values are read once for a group of heads.
Keys are taken in partitions of 256, counted from position 0. A partition gives each row a maximum, a total and a
weighted sum of values; partitions are merged in order. None of it depends on which rows share a tile or which thread
computes a partition: a query's result is the same bits in a prompt, in a chunk of it, and in a step of 16 requests.

When there are few tiles (decode of few requests) partitions are spread over the threads and merged after a barrier.

Arguments: see `attention_tile`.
"""

from typing import Any

from vllm_nb.kernels.cpu import layout
from vllm_nb.kernels.cpu.formats import TILE
from vllm_nb.kernels.cpu.native import attention_float, attention_int8
from vllm_nb.kernels.cpu.native.attention_tile import (
    HEADS,
    KEYS,
    KV_HEADS,
    LENGTHS,
    NUM_SLOTS,
    ROWS,
    SLOTS,
    STARTS,
    Products,
    attend,
    clear,
    fill_table,
    first_key,
    group_size,
    head_width,
    merge,
    private_bytes,
    queries,
    slot_bytes,
    table_of,
    tile_rows,
    write_row,
)
from vllm_nb.kernels.cpu.native.kernel import KERNELS, Function, arg, header, helper, scratch, share, wait_for_all
from vllm_nb.kernels.cpu.native.simd import load_i32


@helper
def _tiles(args: int, seq: int) -> int:
    """Row tiles of one KV head."""
    return (queries(args, seq)[1] * group_size(args) + ROWS - 1) // ROWS


@helper
def _partitions(args: int, seq: int, tile: int) -> tuple[int, int]:
    """(first, stop): the partitions that hold what a tile's rows may see"""
    position, group = queries(args, seq)[2], group_size(args)
    last_row = tile * ROWS + tile_rows(args, seq, tile) - 1
    start = first_key(args, position + tile * ROWS // group)
    return start // KEYS, (position + last_row // group) // KEYS + 1


@helper
def _count_work(args: int, seqs: int) -> tuple[int, int]:
    """(tiles, partitions of all tiles) of a step"""
    tiles, partitions = 0, 0
    for seq in range(seqs):
        here = _tiles(args, seq)
        tiles += here
        for tile in range(here):
            first, stop = _partitions(args, seq, tile)
            partitions += stop - first
    return tiles * arg(args, KV_HEADS), partitions * arg(args, KV_HEADS)


@helper
def _count_rows(args: int, seqs: int) -> int:
    """(query, head) pairs of a step."""
    return load_i32(arg(args, STARTS) + 4 * seqs) * arg(args, HEADS)


def _fetch_partition(fetch: Any) -> Any:
    """-> helper: asks for a partition that is read soon, else its first keys and values would be waited for."""

    @helper
    def fetch_partition(args: int, seq: int, head: int, partition: int, room: int, width: int) -> None:
        table, key = table_of(room, width), partition * KEYS
        keys = min(KEYS, load_i32(arg(args, LENGTHS) + 4 * seq) - key)
        pieces = (keys + TILE - 1) // TILE
        fill_table(args, seq, head, key, TILE * pieces, table)
        fetch(args, table, pieces)

    return fetch_partition


def _fetch_next(fetch: Any) -> Any:
    """-> helper: asks for the first partition of a tile, counted from the first of `seq`, if that has a single one: the
    tiles of a prompt read the same keys."""
    fetch_partition = _fetch_partition(fetch)

    @helper
    def fetch_next(args: int, seqs: int, seq: int, item: int, room: int, width: int) -> None:
        while seq < seqs and item >= _tiles(args, seq) * arg(args, KV_HEADS):
            item -= _tiles(args, seq) * arg(args, KV_HEADS)
            seq += 1
        if seq < seqs and _tiles(args, seq) == 1:
            fetch_partition(args, seq, item, _partitions(args, seq, 0)[0], room, width)

    return fetch_next


def _whole_tiles(load_rows: Any, fetch: Any, attend_partition: Any) -> Any:
    """-> helper: each tile by one thread, in turn, as later tiles of a prompt see more keys."""
    fetch_next = _fetch_next(fetch)

    @helper
    def whole_tiles(args: int, seqs: int, room: int, width: int, thread: int, threads: int) -> None:
        part = room + private_bytes(width)
        total = part + slot_bytes(width)
        spare = total + slot_bytes(width)
        number = 0
        for seq in range(seqs):
            tiles = _tiles(args, seq)
            for item in range(tiles * arg(args, KV_HEADS)):
                number += 1
                if number % threads != thread:
                    continue
                head, tile = item // tiles, item % tiles
                rows = tile_rows(args, seq, tile)
                load_rows(args, seq, head, tile, rows, room)
                clear(total, 0, rows, width)
                first, stop = _partitions(args, seq, tile)
                for partition in range(first, stop):
                    if partition == stop - 1:
                        fetch_next(args, seqs, seq, item + threads, room, width)
                    attend_partition(args, seq, head, tile, partition, rows, room, part, width)
                    merge(total, part, 0, rows, width, spare)
                for row in range(rows):
                    write_row(args, total, seq, head, tile, row, width)

    return whole_tiles


def _split_tiles(load_rows: Any, fetch: Any, attend_partition: Any) -> Any:
    """-> helper: partition by partition, each into a slot of shared memory. A thread's follow each other, as they may
    in memory, where fetching ahead finds them."""
    fetch_partition = _fetch_partition(fetch)

    @helper
    def split_tiles(args: int, seqs: int, room: int, width: int, start: int, stop: int) -> None:
        slot, number = arg(args, SLOTS), 0
        for seq in range(seqs):
            tiles = _tiles(args, seq)
            for item in range(tiles * arg(args, KV_HEADS)):
                head, tile = item // tiles, item % tiles
                rows, ready = tile_rows(args, seq, tile), False
                first, last = _partitions(args, seq, tile)
                for partition in range(first, last):
                    if start == number < stop:
                        fetch_partition(args, seq, head, partition, room, width)
                    if start <= number < stop:
                        if not ready:
                            load_rows(args, seq, head, tile, rows, room)
                            ready = True
                        attend_partition(args, seq, head, tile, partition, rows, room, slot, width)
                    number += 1
                    slot += slot_bytes(width)

    return split_tiles


@helper
def _merge_tiles(args: int, seqs: int, room: int, width: int, start: int, stop: int) -> None:
    """The slots that `split_tiles` filled -> finished rows, those with the numbers start to stop - 1."""
    slot, number = arg(args, SLOTS), 0
    for seq in range(seqs):
        tiles = _tiles(args, seq)
        for item in range(tiles * arg(args, KV_HEADS)):
            head, tile = item // tiles, item % tiles
            rows = tile_rows(args, seq, tile)
            first, last = max(0, start - number), min(rows, stop - number)
            number += rows
            low, high = _partitions(args, seq, tile)
            if first < last:
                clear(room, first, last, width)
                for _ in range(low, high):
                    merge(room, slot, first, last, width, room + slot_bytes(width))
                    slot += slot_bytes(width)
                for row in range(first, last):
                    write_row(args, room, seq, head, tile, row, width)
            else:
                slot += (high - low) * slot_bytes(width)


def _make_attention(products: Products) -> Function:
    load_rows, fetch, attend_partition = products.load_rows, products.fetch, attend(products)
    whole_tiles = _whole_tiles(load_rows, fetch, attend_partition)
    split_tiles = _split_tiles(load_rows, fetch, attend_partition)

    def attention(args: int, step: int, thread: int, threads: int) -> None:
        seqs, width, room = header(step, layout.NUM_SEQS), head_width(args), scratch(step, thread)
        tiles, partitions = _count_work(args, seqs)
        many = tiles >= layout.SPLIT_TILES * threads or partitions == tiles or partitions > arg(args, NUM_SLOTS)
        if threads == 1 or many:
            whole_tiles(args, seqs, room, width, thread, threads)
        else:
            start, stop = share(partitions, thread, threads)
            split_tiles(args, seqs, room, width, start, stop)
            wait_for_all(step, threads)
            start, stop = share(_count_rows(args, seqs), thread, threads)
            _merge_tiles(args, seqs, room, width, start, stop)

    return attention


KERNELS["attention_int8"] = lambda: _make_attention(attention_int8.products())
KERNELS["attention_bf16"] = lambda: _make_attention(attention_float.products("bf16"))
KERNELS["attention_f32"] = lambda: _make_attention(attention_float.products("f32"))
