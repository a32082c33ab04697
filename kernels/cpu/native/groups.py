"""Pairs of tiles times some groups of rows: a block of each is unpacked into registers once, and multiplied with one
group after the other. A number of activations is fetched once for both tiles. Sums wait in memory for the next block;
their arithmetic is that of `tile`.
"""

from typing import Any

from vllm_nb.kernels.cpu.formats import TILE, Format
from vllm_nb.kernels.cpu.layout import GROUP_ROWS, PANEL_TILES, RECORD_BYTES
from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native.blocks import read_block
from vllm_nb.kernels.cpu.native.emit import Builder, Value, const
from vllm_nb.kernels.cpu.native.simd import i64, op, void
from vllm_nb.kernels.cpu.native.tile import Row, add_block, prefetch_lines, sums_at
from vllm_nb.kernels.cpu.tuning import tuning


def rows_at_a_time(fmt: Format) -> int:
    """Of a group: with the blocks, its sums have to fit in registers."""
    return 4 // fmt.groups


def _prefetch(b: Builder, fmt: Format, tile: Value, index: Value, blocks: Value) -> None:
    """Ask for the block that is read some blocks later: at the end of a tile, one of the next pair."""
    later = b.add(index, const(tuning().groups_ahead // (PANEL_TILES * fmt.block_bytes)))
    next_pair = b.add(later, b.mul(blocks, const(PANEL_TILES - 1)))
    later = b.select(b.icmp_signed("<", later, blocks), later, next_pair)
    prefetch_lines(b, emit.offset(b, tile, fmt.block_bytes, later), fmt.block_bytes)


def groups_tile(fmt: Format) -> Any:
    """-> intrinsic (tile, second tile, records, blocks, groups, sums [groups, rows, 2, 16]), which adds to the sums."""
    count = rows_at_a_time(fmt)
    parts = GROUP_ROWS // count  # of a record

    @op(void, i64, i64, i64, i64, i64, i64)
    def tile(b: Builder, first: Value, second: Value, x: Value, blocks: Value, groups: Value, sums: Value) -> None:
        with emit.for_range(b, blocks) as index:
            pair = []
            for w in (first, second):
                _prefetch(b, fmt, w, index, blocks)
                pair.append(read_block(b, fmt, emit.offset(b, w, fmt.block_bytes, index)))
            with emit.for_range(b, groups) as group:
                whole, part = b.udiv(group, const(parts)), b.urem(group, const(parts))
                record = emit.offset(b, x, RECORD_BYTES * GROUP_ROWS, b.add(b.mul(whole, blocks), index))
                record = emit.offset(b, record, 4 * count, part)
                place = emit.offset(b, sums, 4 * TILE * PANEL_TILES * count, group)
                rows = [Row(b, record, row, GROUP_ROWS) for row in range(count)]
                add_block(b, fmt, pair, rows, sums_at(b, place, count * PANEL_TILES))

    return tile
