"""Decode steps as CUDA graphs: hundreds of launches become one, which is what decides the speed of small batches.

A graph has fixed sizes, so there is a ladder of them; a batch takes the next size up, and rows beyond it compute on
padding that nobody reads. The inputs live in one buffer on the device, filled by one copy from page-locked memory.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vllm_nb.engine.batch import Batch

Output = tuple[Tensor, Tensor]  # logits, hidden states
Replay = Callable[[], Output]
Capture = Callable[[Callable[[], Output]], Replay]


def ladder(largest: int) -> list[int]:
    """Batch sizes that are captured: 1, 2, 4, 8, then steps of a quarter of the next power of two."""
    sizes, size = [], 1
    while size < largest:
        sizes.append(size)
        size += size if size < 8 else 1 << (size.bit_length() - 3)
    return [*sizes, largest]


class CudaCapture:
    """Captures work as CUDA graphs that share one pool of memory: only one of them runs at a time."""

    def __init__(self, device: torch.device):
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, work: Callable[[], Output]) -> Replay:
        """`work` runs once beforehand, so that nothing is compiled or allocated for good while it is captured."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            output = work()

        def replay() -> Output:
            graph.replay()
            return output

        return replay


class DecodeGraphs:
    """Graphs of the steps in which every sequence decodes one token.

    forward(batch) -> (logits, hidden states). max_blocks: columns of the block tables. Sizes are int32 rows.
    """

    def __init__(
        self,
        forward: Callable[[Batch], Output],
        *,
        max_num_seqs: int,
        max_blocks: int,
        max_model_len: int,
        device: torch.device,
        capture: Capture,
    ):
        self.sizes = ladder(max_num_seqs)
        self._max_blocks = max_blocks
        self._max_model_len = max_model_len
        self._arguments = torch.zeros(max_num_seqs * (4 + max_blocks), dtype=torch.int32, device=device)
        self._starts = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device)
        self._staging = torch.zeros(len(self._arguments), dtype=torch.int32, pin_memory=device.type == "cuda")
        # The largest first: its memory is what the others reuse.
        self._replays = {size: capture(self._work(forward, size)) for size in reversed(self.sizes)}

    def fits(self, batch: Batch) -> bool:
        return batch.max_query_len == 1 and batch.num_logits == batch.num_seqs == batch.num_tokens

    def replay(self, batch: Batch) -> Output:
        """What forward(batch) gives; valid until the next call."""
        size, rows = self.sizes[bisect_left(self.sizes, batch.num_seqs)], batch.num_seqs
        staged = _split(self._staging.numpy(), size, self._max_blocks)
        for name, padding in (("token_ids", 0), ("positions", 0), ("slot_mapping", -1), ("seq_lens", 1)):
            staged[name][:rows] = getattr(batch, name).numpy()
            staged[name][rows:] = padding
        tables = batch.block_tables.numpy()
        staged["block_tables"][:rows, : tables.shape[1]] = tables
        staged["block_tables"][rows:, 0] = 0
        used = size * (4 + self._max_blocks)
        self._arguments[:used].copy_(self._staging[:used], non_blocking=True)
        logits, hidden = self._replays[size]()
        return logits[:rows], hidden[:rows]

    def _work(self, forward: Callable[[Batch], Output], size: int) -> Callable[[], Output]:
        arguments: dict[str, Any] = _split(self._arguments, size, self._max_blocks)
        batch = Batch(
            **arguments,
            query_start_loc=self._starts[: size + 1],
            logits_indices=self._starts[:size],
            num_tokens=size,
            num_seqs=size,
            num_logits=size,
            max_query_len=1,
            max_seq_len=self._max_model_len,
        )
        return lambda: forward(batch)


def _split(flat: Any, size: int, max_blocks: int) -> dict[str, Any]:
    """Views of a flat buffer (torch or NumPy), laid out so that a smaller size takes a shorter copy."""
    names = ("token_ids", "positions", "slot_mapping", "seq_lens")
    views = {name: flat[i * size : (i + 1) * size] for i, name in enumerate(names)}
    return views | {"block_tables": flat[4 * size : size * (4 + max_blocks)].reshape(size, max_blocks)}
