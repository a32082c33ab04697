"""linear_<format>: one segment of a packed weight times quantised or floating-point activations.

Threads share the tiles of 16 outputs. Few rows are multiplied with packed weights as they come from memory (see `tile`,
`groups`). For more rows a work item is (two tiles, some rows); blocks are unpacked into a panel a part at a time (see
`panel`), and while it is multiplied, the next part is fetched.
"""

from typing import Any

from vllm_nb.kernels.cpu.formats import BLOCK, FLOATS, FORMATS, TILE, VECTOR_BYTES, Format
from vllm_nb.kernels.cpu.layout import (
    FLOAT_PANEL_BLOCKS,
    GROUP_ROWS,
    GROUPED_ROWS,
    ITEM_ROWS,
    PANEL_BLOCKS,
    PANEL_BYTES,
    PANEL_TILES,
    RECORD_BYTES,
)
from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native import panel as panels
from vllm_nb.kernels.cpu.native.groups import groups_tile, rows_at_a_time
from vllm_nb.kernels.cpu.native.kernel import KERNELS, Function, arg, header, helper, scratch, share
from vllm_nb.kernels.cpu.native.panel import Panels
from vllm_nb.kernels.cpu.native.simd import Floats, load, load_part, prefetch, store, store_part, zeros
from vllm_nb.kernels.cpu.native.tile import WIDENED, block_steps, float_tile, quantised_tile

# The arguments of the kernel, by place. X: what `prepare` made of the activations; BLOCKS: of 32 inputs.
ROW_KIND, WEIGHTS, TILES, BLOCKS, X, OUT, OUT_STRIDE, OUTPUTS, BIAS = range(9)


@helper
def _store_tile(args: int, tile: int, row: int, y: Floats) -> None:
    """One row's outputs of a tile, with the bias, as far as there are such outputs."""
    at = 4 * TILE * tile
    count = min(TILE, arg(args, OUTPUTS) - TILE * tile)
    if arg(args, BIAS) != 0:
        y = y + load_part(arg(args, BIAS) + at, count, 0.0)
    target = arg(args, OUT) + 4 * arg(args, OUT_STRIDE) * row + at
    if count == TILE:
        store(target, y)
    else:
        store_part(target, y, count)


def _few_rows(tile: Any, block_bytes: int, most: int) -> Any:
    """-> helper for up to `most` rows: 4 or 8. tile(rows, group) makes the tiles"""
    one, two, four, eight = tile(1, 1), tile(2, GROUP_ROWS), tile(4, GROUP_ROWS), tile(most, GROUP_ROWS)

    @helper
    def multiply(args: int, w: int, rows: int, out: int, stride: int) -> None:
        x, blocks = arg(args, X), arg(args, BLOCKS)
        if rows == 1:
            one(w, x, blocks, out, stride, rows)
        elif rows == 2:
            two(w, x, blocks, out, stride, rows)
        elif most == 4 or rows <= 4:
            four(w, x, blocks, out, stride, rows)
        else:
            eight(w, x, blocks, out, stride, rows)

    @helper
    def few_rows(args: int, rows: int, room: int, thread: int, threads: int) -> None:
        start, stop = share(arg(args, TILES), thread, threads)
        for tile in range(start, stop):
            w = arg(args, WEIGHTS) + tile * arg(args, BLOCKS) * block_bytes
            if arg(args, BIAS) == 0 and arg(args, OUTPUTS) >= TILE * (tile + 1):
                multiply(args, w, rows, arg(args, OUT) + 4 * TILE * tile, arg(args, OUT_STRIDE))
                continue
            multiply(args, w, rows, room, TILE)
            for row in range(rows):
                _store_tile(args, tile, row, load(room + VECTOR_BYTES * row))

    return few_rows


@helper
def _clear(sums: int, size: int) -> None:
    for at in range(sums, sums + size, VECTOR_BYTES):
        store(at, zeros())


def _grouped_rows(fmt: Format) -> Any:
    """-> helper for some groups of rows"""
    multiply, block_bytes, at_a_time = groups_tile(fmt), fmt.block_bytes, rows_at_a_time(fmt)

    @helper
    def grouped_rows(args: int, rows: int, room: int, thread: int, threads: int) -> None:
        blocks, groups = arg(args, BLOCKS), (rows + at_a_time - 1) // at_a_time
        size, tiles = blocks * block_bytes, arg(args, TILES)
        start, stop = share((tiles + PANEL_TILES - 1) // PANEL_TILES, thread, threads)
        for pair in range(start, stop):
            first = PANEL_TILES * pair
            second = min(first + 1, tiles - 1)  # an odd last tile is multiplied twice
            _clear(room, groups * at_a_time * PANEL_TILES * VECTOR_BYTES)
            weights = arg(args, WEIGHTS)
            multiply(weights + first * size, weights + second * size, arg(args, X), blocks, groups, room)
            for row in range(rows):
                at = room + VECTOR_BYTES * PANEL_TILES * row
                for tile in range(first, second + 1):
                    _store_tile(args, tile, row, load(at + VECTOR_BYTES * (tile - first)))

    return grouped_rows


@helper
def _prefetch(first: int, second: int, lines: int, part: int, parts: int) -> None:
    """Ask for one of `parts` parts of the lines at two addresses."""
    start, stop = share(lines, part, parts)
    for line in range(start, stop):
        prefetch(first + VECTOR_BYTES * line)
        prefetch(second + VECTOR_BYTES * line)


def _part_adder(of: Panels, block_bytes: int, row_bytes: int) -> Any:
    """-> helper (args, pair of tiles, first row, last row, first block, last block, panel): adds products to the sums
    behind the panel, the last of each not included. row_bytes: of a row's activations for one block"""
    unpack, multiply, at_a_time, sums_bytes = of.unpack, of.multiply, of.rows, of.sums_bytes

    @helper
    def fill_panel(args: int, pair: int, start: int, blocks: int, panel: int) -> None:
        for tile in range(PANEL_TILES):
            # an odd last tile is multiplied twice
            number = min(PANEL_TILES * pair + tile, arg(args, TILES) - 1) * arg(args, BLOCKS) + start
            unpack(arg(args, WEIGHTS) + number * block_bytes, blocks, panel, tile)

    @helper
    def add_part(args: int, pair: int, first: int, last: int, start: int, stop: int, panel: int) -> None:
        fill_panel(args, pair, start, stop - start, panel)
        blocks = arg(args, BLOCKS)
        after = arg(args, WEIGHTS) + (PANEL_TILES * pair * blocks + stop) * block_bytes
        if stop == blocks:  # the next pair's first part
            after += blocks * block_bytes
        lines, groups = (stop - start) * block_bytes // VECTOR_BYTES, (last - first + at_a_time - 1) // at_a_time
        for group in range(groups):
            _prefetch(after, after + blocks * block_bytes, lines, group, groups)
            row = first + at_a_time * group
            x = arg(args, X) + row_bytes * (row // GROUP_ROWS * GROUP_ROWS * blocks + GROUP_ROWS * start)
            multiply(panel, x + 4 * (row % GROUP_ROWS), stop - start, panel + PANEL_BYTES + sums_bytes * group)

    return add_part


def _sums_storer(of: Panels) -> Any:
    """-> helper (args, pair of tiles, first row, last row, sums)"""
    at_a_time, chains, sums_bytes = of.rows, of.chains, of.sums_bytes

    @helper
    def store_sums(args: int, pair: int, first: int, last: int, sums: int) -> None:
        for row in range(last - first):
            at = sums + sums_bytes * (row // at_a_time) + VECTOR_BYTES * PANEL_TILES * (row % at_a_time)
            for tile in range(min(PANEL_TILES, arg(args, TILES) - PANEL_TILES * pair)):
                y = load(at + VECTOR_BYTES * tile)
                if chains == 2:
                    y = y + load(at + VECTOR_BYTES * tile + sums_bytes // 2)
                _store_tile(args, PANEL_TILES * pair + tile, first + row, y)

    return store_sums


def _many_rows(of: Panels, block_bytes: int, row_bytes: int, panel_blocks: int) -> Any:
    """-> helper for any number of rows above 1. Some rows' activations stay in a near cache while weights pass by."""
    add_part, store_sums = _part_adder(of, block_bytes, row_bytes), _sums_storer(of)
    at_a_time, sums_bytes = of.rows, of.sums_bytes

    @helper
    def many_rows(args: int, rows: int, room: int, thread: int, threads: int) -> None:
        blocks, sums = arg(args, BLOCKS), room + PANEL_BYTES
        parts, pieces = (blocks + panel_blocks - 1) // panel_blocks, (rows + ITEM_ROWS - 1) // ITEM_ROWS
        pairs = (arg(args, TILES) + PANEL_TILES - 1) // PANEL_TILES
        for piece in range(pieces):
            first, last = ITEM_ROWS * piece, min(rows, ITEM_ROWS * (piece + 1))
            # a thread keeps its share of the weights; where shares differ by a pair they go round
            start, stop = share(pairs, (thread + piece * (pairs % threads)) % threads, threads)
            for pair in range(start, stop):
                _clear(sums, (last - first + at_a_time - 1) // at_a_time * sums_bytes)
                for part in range(parts):
                    begin, end = share(blocks, part, parts)
                    add_part(args, pair, first, last, begin, end, room)
                store_sums(args, pair, first, last, sums)

    return many_rows


def _make_quantised(fmt: Format) -> Function:
    few_rows = _few_rows(lambda rows, group: quantised_tile(fmt, rows, group), fmt.block_bytes, 4)
    grouped_rows = _grouped_rows(fmt)
    many_rows = _many_rows(panels.quantised(fmt), fmt.block_bytes, RECORD_BYTES, PANEL_BLOCKS)

    def linear(args: int, step: int, thread: int, threads: int) -> None:
        rows, room = header(step, arg(args, ROW_KIND)), scratch(step, thread)
        if rows <= 4:
            few_rows(args, rows, room, thread, threads)
        elif rows <= GROUPED_ROWS:
            grouped_rows(args, rows, room, thread, threads)
        else:
            many_rows(args, rows, room, thread, threads)

    return linear


def _make_float(name: str) -> Function:
    kind = WIDENED if name == "bf16" and not emit.multiplies_pairs() else name
    block_bytes, row_bytes = BLOCK * TILE * FLOATS[name], 4 * block_steps(kind)
    few_rows = _few_rows(lambda rows, group: float_tile(kind, rows, group), block_bytes, GROUP_ROWS)
    many_rows = _many_rows(panels.floats(kind), block_bytes, row_bytes, FLOAT_PANEL_BLOCKS)

    def linear(args: int, step: int, thread: int, threads: int) -> None:
        rows, room = header(step, arg(args, ROW_KIND)), scratch(step, thread)
        if rows <= GROUP_ROWS:
            few_rows(args, rows, room, thread, threads)
        else:
            many_rows(args, rows, room, thread, threads)

    return linear


for _format in FORMATS.values():
    KERNELS[f"linear_{_format.name}"] = lambda fmt=_format: _make_quantised(fmt)  # type: ignore[misc]
for _kind in FLOATS:
    KERNELS[f"linear_{_kind}"] = lambda kind=_kind: _make_float(kind)  # type: ignore[misc]
