"""linear_<format>: one segment of a packed weight times quantised or floating-point activations.

Threads split the tiles of 16 outputs; within a tile rows go 8 at a time, so that a weight is read once for all of them.
"""

from typing import Any

from vllm_nb.kernels.cpu.formats import FORMATS, TILE, VECTOR_BYTES, Format
from vllm_nb.kernels.cpu.layout import GROUP_ROWS, RECORD_BYTES
from vllm_nb.kernels.cpu.native import tile as tiles_of
from vllm_nb.kernels.cpu.native.kernel import KERNELS, Function, arg, header, helper, scratch, share
from vllm_nb.kernels.cpu.native.simd import Floats, load, load_part, store, store_part

CHUNK = 8  # groups of rows in one work item

# The arguments of the kernel, by place. X: what `prepare` made of the activations; STEPS: blocks of 32 inputs, or for
# floating-point weights inputs, or pairs of them for bf16.
ROW_KIND, WEIGHTS, TILES, STEPS, X, OUT, OUT_STRIDE, OUTPUTS, BIAS = range(9)


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


def _driver(multiply: Any, tile_bytes: Any) -> Any:
    """-> the kernel: work items are (tile, chunk of groups of rows), tile by tile.

    multiply(args, tile's address, rows in all, first row, out, stride, rows wanted)
    """

    @helper
    def multiply_group(args: int, w: int, rows: int, tile: int, row: int, room: int) -> None:
        stride, count = arg(args, OUT_STRIDE), min(GROUP_ROWS, rows - row)
        if arg(args, BIAS) == 0 and arg(args, OUTPUTS) >= TILE * (tile + 1):
            multiply(args, w, rows, row, arg(args, OUT) + 4 * (stride * row + TILE * tile), stride, count)
            return
        multiply(args, w, rows, row, room, TILE, count)
        for n in range(count):
            _store_tile(args, tile, row + n, load(room + VECTOR_BYTES * n))

    def linear(args: int, step: int, thread: int, threads: int) -> None:
        rows, room = header(step, arg(args, ROW_KIND)), scratch(step, thread)
        groups = (rows + GROUP_ROWS - 1) // GROUP_ROWS
        chunks = (groups + CHUNK - 1) // CHUNK
        start, stop = share(arg(args, TILES) * chunks, thread, threads)
        for item in range(start, stop):
            tile, chunk = item // chunks, item % chunks
            w = arg(args, WEIGHTS) + tile * tile_bytes(args)
            for group in range(chunk * CHUNK, min(groups, (chunk + 1) * CHUNK)):
                multiply_group(args, w, rows, tile, group * GROUP_ROWS, room)

    return linear


def _make_quantised(fmt: Format) -> Function:
    one = tiles_of.quantised_tile(fmt, 1, 1)
    two, four, eight = (tiles_of.quantised_tile(fmt, rows, GROUP_ROWS) for rows in (2, 4, 8))
    block_bytes = fmt.block_bytes

    @helper
    def tile_bytes(args: int) -> int:
        return arg(args, STEPS) * block_bytes

    @helper
    def multiply(args: int, w: int, rows: int, row: int, out: int, stride: int, count: int) -> None:
        blocks = arg(args, STEPS)
        x = arg(args, X) + RECORD_BYTES * blocks * row
        if rows == 1:
            one(w, x, blocks, out, stride, count)
        elif count > 4:
            eight(w, x, blocks, out, stride, count)
        elif count > 2:
            four(w, x, blocks, out, stride, count)
        else:
            two(w, x, blocks, out, stride, count)

    return _driver(multiply, tile_bytes)


def _make_float(kind: str) -> Function:
    step_bytes = tiles_of.STEP_BYTES[kind]
    one = tiles_of.float_matrix_tile(kind, 1, 4, 4)
    two, eight = (tiles_of.float_matrix_tile(kind, rows, 4, 4 * GROUP_ROWS) for rows in (2, GROUP_ROWS))

    @helper
    def tile_bytes(args: int) -> int:
        return arg(args, STEPS) * step_bytes

    @helper
    def multiply(args: int, w: int, rows: int, row: int, out: int, stride: int, count: int) -> None:
        steps = arg(args, STEPS)
        x = arg(args, X) + 4 * steps * row
        if rows == 1:
            one(w, steps, x, out, stride, count)
        elif count > 2:
            eight(w, steps, x, out, stride, count)
        else:
            two(w, steps, x, out, stride, count)

    return _driver(multiply, tile_bytes)


for _format in FORMATS.values():
    KERNELS[f"linear_{_format.name}"] = lambda fmt=_format: _make_quantised(fmt)  # type: ignore[misc]
for _kind in ("bf16", "f16", "f32"):
    KERNELS[f"linear_{_kind}"] = lambda kind=_kind: _make_float(kind)  # type: ignore[misc]
