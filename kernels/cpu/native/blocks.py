"""Blocks of packed weights (see `formats`), spread out in registers.

Numbers are raised to fill a byte, and scales lowered by the same power of two. So a zero point lies at 128, whatever
the format: what it adds to a dot depends on the activations alone, and dots start from there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from vllm_nb.kernels.cpu.formats import CODEBOOK, QUADS, VECTOR_BYTES, Format
from vllm_nb.kernels.cpu.layout import ROUNDER
from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native.emit import BYTES, Builder, Value, byte_vector, const, float_vector

ZERO = 128


@dataclass(frozen=True)
class Block:
    """What gives the 8 vectors of unsigned bytes; of each group its float32 scales, and its minima if there are; and
    the offset that takes away what ROUNDER adds to their products (see `tile`)."""

    quad: Callable[[int], Value]
    scale: Callable[[int], Value]
    offset: Callable[[], Value]
    minimum: Callable[[int], Value] | None


def has_zero(fmt: Format) -> bool:
    """Whether ZERO has to be subtracted from the bytes."""
    return fmt.codebook or fmt.zero != 0


def _minimum_factor(fmt: Format) -> float:
    """A group of half a block multiplies its minimum with what a dot may start from: ROUNDER - ZERO times a sum."""
    return 1.0 if fmt.groups == 1 else -1.0 / ZERO


def read_block(b: Builder, fmt: Format, block: Value) -> Block:
    """The packed block at an address."""

    def factors(at: int, factor: float) -> Callable[[int], Value]:
        values = [emit.load_halves(b, b.add(block, const(at + 32 * group))) for group in range(fmt.groups)]
        if factor != 1.0:
            values = [b.fmul(value, float_vector(factor)) for value in values]
        return values.__getitem__

    quads = _quads(b, fmt, block)
    scales = factors(fmt.scales_at, 1.0 / (1 << _raised_by(fmt)))
    minima = factors(fmt.minima_at, _minimum_factor(fmt)) if fmt.has_min else None
    with_rounder = [scales(group) for group in range(fmt.groups)]
    if minima and fmt.groups == 2:
        with_rounder += [minima(group) for group in range(fmt.groups)]
    offset = b.fmul(reduce(b.fadd, with_rounder), float_vector(-ROUNDER))
    return Block(quads.__getitem__, scales, lambda: offset, minima)


def _raised_by(fmt: Format) -> int:
    """Bits that the numbers are shifted left."""
    return 0 if fmt.codebook else 8 - fmt.low - fmt.high


def _quads(b: Builder, fmt: Format, block: Value) -> list[Value]:
    loaded: dict[int, Value] = {}
    raised = _raised_by(fmt)

    def field(bits: int, plane: int, base: int, quad: int) -> Value:
        at = plane + quad % bits
        if at not in loaded:
            loaded[at] = emit.load(b, b.add(block, const(VECTOR_BYTES * at)), BYTES)
        if bits == 8:
            return loaded[at]
        left = base - bits * (quad // bits)
        move, by = (b.shl, left) if left > 0 else (b.lshr, -left)
        return b.and_(move(loaded[at], byte_vector(by)), byte_vector(((1 << bits) - 1) << base))

    def value(quad: int) -> Value:
        q = field(fmt.low, 0, raised, quad)
        if fmt.high:
            q = b.or_(q, field(fmt.high, fmt.low, fmt.low + raised, quad))
        return emit.look_up_bytes(b, [v + ZERO for v in CODEBOOK], q) if fmt.codebook else q

    return [value(quad) for quad in range(QUADS)]
