"""Panels: some blocks of two tiles, unpacked once and then multiplied with many rows of activations, a few at a time.

A panel lies in the thread's scratch memory, in the nearest cache. Its vectors of both tiles lie side by side:

    of integers, block by block    8 quads of bytes, the scales float32 of each group, the offset, the minima
    of floats, input by input      float32; bfloat16 pairs where the variant multiplies those

A number of activations is fetched once for both tiles. Of eight or sixteen dots at a time none waits for the one
before. Sixteen take half the registers, so their sums stay in memory. The arithmetic of a sum is that of `tile`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from vllm_nb.kernels.cpu.formats import QUADS, VECTOR_BYTES, Format
from vllm_nb.kernels.cpu.layout import GROUP_ROWS, PANEL_TILES, RECORD_BYTES
from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native.blocks import Block, read_block
from vllm_nb.kernels.cpu.native.emit import BYTES, FLOATS, INTS, Builder, Value, const
from vllm_nb.kernels.cpu.native.simd import i64, op, void
from vllm_nb.kernels.cpu.native.tile import PAIR_BYTES, Row, add_block, add_step, block_steps, read_pair, sums_at
from vllm_nb.kernels.cpu.tuning import tuning


@dataclass(frozen=True)
class Panels:
    """How weights of one kind become panels.

    rows: multiplied at a time; chains: sums of each. unpack: intrinsic (packed blocks, their number, panel, tile);
    multiply: intrinsic (panel, activations of `rows` rows, blocks, sums [chains, rows, 2 tiles, 16]), adds to the sums.
    """

    rows: int
    chains: int
    unpack: Any
    multiply: Any

    @property
    def sums_bytes(self) -> int:
        return self.chains * self.rows * PANEL_TILES * VECTOR_BYTES


def quantised(fmt: Format) -> Panels:
    factors = fmt.groups * (1 + fmt.has_min) + 1
    in_registers = tuning().panel_rows < GROUP_ROWS and emit.many_registers()
    # two groups have twice the dots at a time
    rows = tuning().panel_rows if in_registers else GROUP_ROWS // fmt.groups

    def address(b: Builder, panel: Value, vector: int, tile: int) -> Value:
        return b.add(panel, const(VECTOR_BYTES * (PANEL_TILES * vector + tile)))

    size = VECTOR_BYTES * PANEL_TILES * (QUADS + factors)

    @op(void, i64, i64, i64, i64)
    def unpack(b: Builder, w: Value, blocks: Value, panel: Value, tile: Value) -> None:
        panel = emit.offset(b, panel, VECTOR_BYTES, tile)
        with emit.for_range(b, blocks) as index:
            block = read_block(b, fmt, emit.offset(b, w, fmt.block_bytes, index))
            values = [block.quad(n) for n in range(QUADS)] + [block.scale(n) for n in range(fmt.groups)]
            values.append(block.offset())
            values += [block.minimum(n) for n in range(fmt.groups)] if block.minimum else []
            target = emit.offset(b, panel, size, index)
            for number, value in enumerate(values):
                emit.store(b, address(b, target, number, 0), value)

    def unpacked(b: Builder, panel: Value, tile: int) -> Block:
        def loader(first: int, kind: Any) -> Callable[[int], Value]:
            # once: the compiler would read them anew after each store of a sum
            return cache(lambda n: emit.load(b, address(b, panel, first + n, tile), kind))

        factor = loader(QUADS, FLOATS)  # scales, offset, minima
        minimum = loader(QUADS + fmt.groups + 1, FLOATS) if fmt.has_min else None
        return Block(loader(0, BYTES), factor, lambda: factor(fmt.groups), minimum)

    @op(void, i64, i64, i64, i64)
    def multiply(b: Builder, panel: Value, x: Value, blocks: Value, sums: Value) -> None:
        places = sums_at(b, sums, rows * PANEL_TILES)
        kept = [emit.variable(b, b.load(place)) for place in places] if in_registers else []
        with emit.for_range(b, blocks) as index:
            totals = kept or sums_at(b, emit.disguise(b, sums), rows * PANEL_TILES)
            at, record = emit.offset(b, panel, size, index), emit.offset(b, x, RECORD_BYTES * GROUP_ROWS, index)
            tiles = [unpacked(b, at, tile) for tile in range(PANEL_TILES)]
            add_block(b, fmt, tiles, [Row(b, record, row, GROUP_ROWS) for row in range(rows)], totals)
        for total, place in zip(kept, places, strict=False):
            b.store(b.load(total), place)

    return Panels(rows, 1, unpack, multiply)


def floats(kind: str) -> Panels:
    pairs, form = block_steps(kind) // 2, INTS if kind == "bf16" else FLOATS
    step_size, rows = VECTOR_BYTES * PANEL_TILES, GROUP_ROWS // 2

    @op(void, i64, i64, i64, i64)
    def unpack(b: Builder, w: Value, blocks: Value, panel: Value, tile: Value) -> None:
        panel = emit.offset(b, panel, VECTOR_BYTES, tile)
        with emit.for_range(b, b.mul(blocks, const(pairs))) as index:
            for chain, value in enumerate(read_pair(b, kind, emit.offset(b, w, PAIR_BYTES[kind], index))):
                emit.store(b, emit.offset(b, panel, 2 * step_size, index, chain * step_size), value)

    @op(void, i64, i64, i64, i64)
    def multiply(b: Builder, panel: Value, x: Value, blocks: Value, sums: Value) -> None:
        places = sums_at(b, sums, 2 * rows * PANEL_TILES)
        totals = [emit.variable(b, b.load(place)) for place in places]
        with emit.for_range(b, b.mul(blocks, const(pairs))) as index:
            for chain in range(2):
                at = emit.offset(b, panel, 2 * step_size, index, chain * step_size)
                weights = [emit.load(b, b.add(at, const(VECTOR_BYTES * n)), form) for n in range(PANEL_TILES)]
                values = emit.offset(b, x, 8 * GROUP_ROWS, index, 4 * GROUP_ROWS * chain)
                half = rows * PANEL_TILES
                add_step(b, kind, weights, values, 4, totals[chain * half : (chain + 1) * half])
        for total, place in zip(totals, places, strict=True):
            b.store(b.load(total), place)

    return Panels(rows, 2, unpack, multiply)
