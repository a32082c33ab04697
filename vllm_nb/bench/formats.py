"""`vllm-nb bench kernels --formats`: products with each packed format, beside what this machine allows. Needs no model.

Weights are made up: a product's time does not depend on what they say. Matrices are multiplied in turns until as much
memory has been read as the bandwidth was measured on, so the caches help both alike. Two floors:

bytes       the packed weights read once, at the bandwidth of summing a large array
operations  two for each weight and row, at the rate of the variant's own instruction (for bytes, pairs of bfloat16,
            float32) on registers alone; putting scales to the sums and bits in their places comes on top

A product's floor is the greater of the two; making int8 of the activations counts as its time.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from vllm_nb.bench.machine import Machine, measure
from vllm_nb.bench.report import show
from vllm_nb.kernels import cpu
from vllm_nb.kernels.cpu.formats import FLOATS, FORMATS, TILE
from vllm_nb.kernels.cpu.memory import large_empty
from vllm_nb.kernels.cpu.packing import Segment, Weight

KINDS = (*FORMATS, *FLOATS)

_ARENA = 1 << 28  # bytes that all matrices of a format take together
_MOST = 512  # matrices
_FEW_ROWS = 32  # above, the weights' bytes matter little, and two matrices are enough
_SECONDS = 0.25  # spent on each product


def run(args: argparse.Namespace) -> int:
    if unknown := set(args.formats) - set(KINDS):
        raise ValueError(f"no packed format {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    cpu.prepare()
    if args.threads:
        cpu.set_threads(args.threads)
    machine = measure()
    arena = large_empty(_ARENA)
    arena.fill(0x11)  # as a number of any type neither huge nor subnormal
    found = [
        _measure(machine, _Matrices(kind, outputs, inputs, arena), rows)
        for outputs, inputs in args.shapes
        for kind in args.formats or KINDS
        for rows in args.rows
    ]
    show([machine.row()], args.json, "this machine, measured now")
    show(found if args.json else _pivot(found), args.json, "share of the nearer floor, by rows of activations")
    return 0


class _Matrices:
    """As many matrices of one format as fit in the arena."""

    def __init__(self, kind: str, outputs: int, inputs: int, arena: np.ndarray):
        self.kind, self.outputs, self.inputs = kind, outputs, inputs
        self.nbytes = packed_bytes(kind, outputs, inputs)
        self._arena = arena

    def weights(self, at_most: int) -> list[Weight]:
        size = -(-self.nbytes // 64) * 64
        count = max(1, min(at_most, len(self._arena) // size))
        pieces = [self._arena[n * size : n * size + self.nbytes] for n in range(count)]
        return [
            Weight((Segment(self.kind, self.outputs, self.inputs, FORMATS.get(self.kind), torch.from_numpy(piece)),))
            for piece in pieces
        ]


def packed_bytes(kind: str, outputs: int, inputs: int) -> int:
    """Of a matrix: whole tiles, and whole blocks of 32 inputs."""
    tiles, blocks = -(-outputs // TILE), -(-inputs // 32)
    if kind in FORMATS:
        return tiles * blocks * FORMATS[kind].block_bytes
    return tiles * TILE * blocks * 32 * FLOATS[kind]


def _measure(machine: Machine, matrices: _Matrices, rows: int) -> dict[str, Any]:
    weights = matrices.weights(2 if rows > _FEW_ROWS else _MOST)
    x = torch.ones(rows, matrices.inputs)

    def multiply(x: torch.Tensor, _: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        for weight in weights:
            out = cpu.linear(x, weight)
        return out, out

    graph = cpu.capture(multiply, x, [])
    seconds = _best(lambda: graph.replay(rows, 1, 1)) / len(weights)
    operations = 2 * rows * matrices.outputs * matrices.inputs
    memory_floor = matrices.nbytes / machine.read_rate
    ops_floor = machine.product_seconds({matrices.kind: operations})
    return {
        "format": matrices.kind,
        "shape": f"{matrices.outputs}x{matrices.inputs}",
        "rows": rows,
        "ms": float(f"{1000 * seconds:.4g}"),  # a small product takes less than a microsecond
        "gb_per_second": round(matrices.nbytes / seconds / 1e9, 2),
        "gop_per_second": round(operations / seconds / 1e9, 1),
        "of_memory": round(memory_floor / seconds, 3),
        "of_ops": round(ops_floor / seconds, 3),
    }


def _best(work: Callable[[], Any]) -> float:
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < _SECONDS:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _pivot(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each format and shape; a cell says which floor is nearer, and how near."""
    table: dict[tuple[str, str], dict[str, Any]] = {}
    for one in found:
        line = table.setdefault((one["format"], one["shape"]), {"format": one["format"], "shape": one["shape"]})
        memory, ops = one["of_memory"], one["of_ops"]
        line[str(one["rows"])] = f"{memory:.0%} bytes" if memory > ops else f"{ops:.0%} ops"
    return list(table.values())
