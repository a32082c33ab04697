"""What a decode step asks of a GPU that need not be there: its launches, counted as a graph would hold them, and the
bytes that it cannot avoid. A launch takes time however little it does, which for small models is what bounds a step.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vllm_nb.bench.gpu_resources import GPUS, META, record, resources
from vllm_nb.bench.report import show
from vllm_nb.bench.synthetic import SyntheticCheckpoint
from vllm_nb.engine.capacity import Capacity
from vllm_nb.engine.graphs import DecodeGraphs, Work
from vllm_nb.engine.runner import Runner, allocate_kv
from vllm_nb.kernels import triton as kernels
from vllm_nb.kernels.triton import tiles
from vllm_nb.models.registry import build

_BLOCK = 16
_VIEWS = ("view", "slice", "select", "expand", "alias", "detach", "as_strided", "t")
_UNWRITTEN = ("empty", "empty_like", "new_empty")
_FREE = {*_VIEWS, *_UNWRITTEN, "promote_types"}


class _Launching(TorchDispatchMode):
    """Counts PyTorch's operations, all but views and memory that is not written."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ not in _FREE
        return func(*args, **(kwargs or {}))


def run(args: argparse.Namespace) -> int:
    """`vllm-nb bench compile`: resources and launches; args.only: no launches, and not all resources."""
    show(list(resources(args.only or ("",))), args.json, "Triton kernels, compiled for sm_80 and sm_90")
    if not args.only:
        show(list(launches()), args.json, "launches of a decode step's graph, on a GPU of 132 processors")
    return 0


def launches(context: int = 1024) -> Iterator[dict[str, Any]]:
    """A row for each of the synthetic models and some batch sizes. gb: weights and the caches of `context` tokens."""
    tiles.assumed = GPUS[-1]
    for name in ("qwen3-8b", "qwen3-0.6b"):
        for rows in (1, 16, 256):
            runner = _runner(name, rows, context)
            ours, others = _count(runner, rows, context)
            per_block = sum(kv.nbytes for kv in runner.kv) // runner.capacity.num_blocks
            moved = runner.model.step_bytes + rows * -(-context // _BLOCK) * per_block
            yield {
                "shapes": name,
                "rows": rows,
                "context": context,
                "launches": ours + others,
                "triton": ours,
                "pytorch": others,
                "gb": round(moved / 1e9, 2),
            }


def _runner(name: str, rows: int, context: int) -> Runner:
    model = build(SyntheticCheckpoint(name, META), kernels, dtype=torch.bfloat16, device=META, max_len=context)
    capacity = Capacity(context, rows, 8192, rows, _BLOCK, num_blocks=rows * -(-context // _BLOCK))
    kv = allocate_kv(kernels, model.config, capacity, torch.bfloat16, META)
    return Runner(model, kernels, capacity, kv, device=META)


def _count(runner: Runner, rows: int, context: int) -> tuple[int, int]:
    """Launches of Triton's and of PyTorch's kernels in the graph for that many rows."""
    found: list[tuple[int, int]] = []

    def capture(work: Work) -> Work:
        if found:  # the largest came first
            return work
        record(work)  # allocates what stays
        with _Launching() as mode:
            ours = len(record(work))
        found.append((ours, mode.count))
        return work

    DecodeGraphs(
        runner._forward_rows,
        max_num_seqs=rows,
        max_blocks=runner.rows.block_tables.shape[1],
        max_model_len=context,
        device=META,
        capture=capture,
    )
    return found[0]
