"""Tiles times some groups of 8 rows: a block is unpacked into registers once, and multiplied with one group after the
other. Sums wait in memory for the next block; their arithmetic is that of `tile`.
"""

from typing import Any

from vllm_nb.kernels.cpu.formats import TILE, Format
from vllm_nb.kernels.cpu.layout import GROUP_ROWS, RECORD_BYTES
from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native.blocks import read_block
from vllm_nb.kernels.cpu.native.emit import Builder, Value
from vllm_nb.kernels.cpu.native.simd import i64, op, void
from vllm_nb.kernels.cpu.native.tile import Row, add_block, prefetch_ahead, sums_at


def groups_tile(fmt: Format) -> Any:
    """-> intrinsic (tile, records, blocks, groups, sums [groups, 8, 16]), which adds to the sums."""

    @op(void, i64, i64, i64, i64, i64)
    def tile(b: Builder, w: Value, x: Value, blocks: Value, groups: Value, sums: Value) -> None:
        with emit.for_range(b, blocks) as index:
            at = emit.offset(b, w, fmt.block_bytes, index)
            prefetch_ahead(b, at, fmt.block_bytes)
            block = read_block(b, fmt, at)
            with emit.for_range(b, groups) as group:
                place = emit.offset(b, sums, 4 * TILE * GROUP_ROWS, group)
                record = emit.offset(b, x, RECORD_BYTES * GROUP_ROWS, b.add(b.mul(group, blocks), index))
                rows = [Row(b, record, row, GROUP_ROWS) for row in range(GROUP_ROWS)]
                add_block(b, fmt, [block], rows, sums_at(b, place, GROUP_ROWS))

    return tile
