"""linear_<format>: one segment of a packed weight times quantised or floating-point activations.

Threads split the tiles of 16 outputs; within a tile rows go 8 at a time, so that a weight is read once for all of them.
"""

from typing import Any

from vllm_nb.kernels.cpu.formats import BLOCK, FORMATS, TILE, VECTOR_BYTES, Format
from vllm_nb.kernels.cpu.native import tile as tiles_of
from vllm_nb.kernels.cpu.native.kernel import KERNELS, Function, arg, header, helper, scratch, share
from vllm_nb.kernels.cpu.native.simd import Floats, load, load_part, store, store_i64, store_part

ROW_CHUNK = 64  # rows of x in one work item
ROWS = 8  # rows of x in one tile
_PARTIAL = ROWS * VECTOR_BYTES  # scratch kept free for a last tile with fewer than 16 outputs

# the arguments of the kernel, by place. STEPS: blocks of 32 inputs; inputs, or pairs of them, of floating-point weights
# X: the quantised or rounded activations; the three that follow only go with quantised ones
ROW_KIND, WEIGHTS, TILES, STEPS, X, X_SCALES, X_SUMS, X_INT_SUMS, OUT, OUT_STRIDE, OUTPUTS, BIAS = range(12)


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


def _by_rows(multiply: dict[int, Any]) -> Any:
    """-> helper that runs a tile over any number of rows. multiply: rows -> helper(w, args, row, out, stride)"""
    eight, four, two, one = (multiply[n] for n in (8, 4, 2, 1))

    @helper
    def run(w: int, args: int, first: int, last: int, out: int, stride: int) -> None:
        row = first
        while row < last:
            target = out + 4 * stride * (row - first)
            if row + 8 <= last:
                eight(w, args, row, target, stride)
                row += 8
            elif row + 4 <= last:
                four(w, args, row, target, stride)
                row += 4
            elif row + 2 <= last:
                two(w, args, row, target, stride)
                row += 2
            else:
                one(w, args, row, target, stride)
                row += 1

    return run


def _all_rows(multiply: dict[int, Any], prepare: Any, tile_bytes: Any) -> Any:
    """-> helper: work items are (tile, chunk of rows), tile by tile.

    prepare(args, tile, room) -> what `multiply` reads as weights.
    """
    run = _by_rows(multiply)

    @helper
    def with_care(w: int, args: int, tile: int, first: int, last: int, room: int) -> None:
        """Through scratch memory: a tile with a bias, or with fewer than 16 outputs."""
        for start in range(first, last, ROWS):
            end = min(last, start + ROWS)
            run(w, args, start, end, room, TILE)
            for row in range(start, end):
                _store_tile(args, tile, row, load(room + VECTOR_BYTES * (row - start)))

    @helper
    def linear(args: int, rows: int, room: int, thread: int, threads: int) -> None:
        chunks = (rows + ROW_CHUNK - 1) // ROW_CHUNK
        stride = arg(args, OUT_STRIDE)
        start, stop = share(arg(args, TILES) * chunks, thread, threads)
        ready, w = -1, room
        for item in range(start, stop):
            tile, chunk = item // chunks, item % chunks
            if tile != ready:
                ready, w = tile, prepare(args, arg(args, WEIGHTS) + tile * tile_bytes(args), room + _PARTIAL)
            first, last = chunk * ROW_CHUNK, min(rows, (chunk + 1) * ROW_CHUNK)
            if arg(args, BIAS) == 0 and arg(args, OUTPUTS) >= TILE * (tile + 1):
                run(w, args, first, last, arg(args, OUT) + 4 * (stride * first + TILE * tile), stride)
            else:
                with_care(w, args, tile, first, last, room)

    return linear


def _multiply_quantised(fmt: Format, rows: int) -> Any:
    gemm = tiles_of.gemm(fmt.groups, fmt.has_min, rows)

    @helper
    def multiply(w: int, args: int, row: int, out: int, stride: int) -> None:
        blocks = arg(args, STEPS)
        at = row * blocks
        scales, sums, int_sums = arg(args, X_SCALES), arg(args, X_SUMS), arg(args, X_INT_SUMS)
        gemm(w, arg(args, X) + BLOCK * at, scales + 4 * at, sums + 4 * at, int_sums + 8 * at, blocks, out, stride)

    return multiply


def _make_quantised(fmt: Format) -> Function:
    gemv, unpack, block_bytes = tiles_of.gemv(fmt), tiles_of.unpack(fmt), fmt.block_bytes

    @helper
    def tile_bytes(args: int) -> int:
        return arg(args, STEPS) * block_bytes

    @helper
    def prepare(args: int, packed: int, room: int) -> int:
        unpack(packed, arg(args, STEPS), room)
        return room

    many_rows = _all_rows({n: _multiply_quantised(fmt, n) for n in (8, 4, 2, 1)}, prepare, tile_bytes)

    def linear(args: int, step: int, thread: int, threads: int) -> None:
        rows = header(step, arg(args, ROW_KIND))
        if rows > 1:
            many_rows(args, rows, scratch(step, thread), thread, threads)
            return
        start, stop = share(arg(args, TILES), thread, threads)
        for tile in range(start, stop):
            w = arg(args, WEIGHTS) + tile * tile_bytes(args)
            scales, sums, int_sums = arg(args, X_SCALES), arg(args, X_SUMS), arg(args, X_INT_SUMS)
            _store_tile(args, tile, 0, gemv(w, arg(args, X), scales, sums, int_sums, arg(args, STEPS)))

    return linear


def _make_float(kind: str) -> Function:
    step_bytes = {"bf16": VECTOR_BYTES, "f16": VECTOR_BYTES // 2, "f32": VECTOR_BYTES}[kind]

    def multiply_of(rows: int) -> Any:
        float_tile = tiles_of.float_tile(kind, rows)

        @helper
        def multiply(table: int, args: int, row: int, out: int, stride: int) -> None:
            steps = arg(args, STEPS)
            float_tile(table, 1, steps, arg(args, X) + 4 * steps * row, 4 * steps, out, stride)

        return multiply

    @helper
    def tile_bytes(args: int) -> int:
        return arg(args, STEPS) * step_bytes

    @helper
    def prepare(args: int, packed: int, room: int) -> int:
        store_i64(room, packed)  # the table of one piece that the tile reads
        return room

    run = _all_rows({n: multiply_of(n) for n in (8, 4, 2, 1)}, prepare, tile_bytes)

    def linear(args: int, step: int, thread: int, threads: int) -> None:
        run(args, header(step, arg(args, ROW_KIND)), scratch(step, thread), thread, threads)

    return linear


for _format in FORMATS.values():
    KERNELS[f"linear_{_format.name}"] = lambda fmt=_format: _make_quantised(fmt)  # type: ignore[misc]
for _kind in ("bf16", "f16", "f32"):
    KERNELS[f"linear_{_kind}"] = lambda kind=_kind: _make_float(kind)  # type: ignore[misc]
