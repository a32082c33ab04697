"""Decode steps as CUDA graphs: hundreds of launches become one, which is what decides the speed of small batches.

A graph has fixed sizes, so there is a ladder of them; a batch takes the next size up, and rows beyond it compute on
padding that nobody reads. The inputs live in one buffer on the device, filled by one copy from page-locked memory, and
the tokens where the sampler has put them (engine/batch.py: Rows), so that no step waits for the host. What comes out is
copied to one buffer too: kept where it arose, the logits of all sizes together would take a gigabyte.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vllm_nb.engine.batch import Batch
from vllm_nb.engine.transfer import page_locked

Output = tuple[Tensor, Tensor]  # logits, hidden states
Work = Callable[[], None]  # on memory that stays where it is

_PADDING = {"token_rows": 0, "positions": 0, "slot_mapping": -1, "seq_lens": 1}  # a row that nobody reads


def ladder(largest: int) -> list[int]:
    """Batch sizes that are captured: 1, 2, 4, 8, then steps of a quarter of the next power of two."""
    sizes, size = [], 1
    while size < largest:
        sizes.append(size)
        size += size if size < 8 else 1 << (size.bit_length() - 3)
    return [*sizes, largest]


class CudaCapture:
    """Captures work as CUDA graphs that share one pool of memory: only one of them runs at a time.

    Another engine of the process may serve meanwhile: what its thread allocates or waits for is no part of the capture,
    and must not end it. That it captures too is ruled out, because capturing begins by emptying PyTorch's cache.
    """

    _one_at_a_time = threading.Lock()

    def __init__(self, device: torch.device):
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, work: Work) -> Work:
        """`work`, to be replayed. It runs once beforehand, so that nothing is compiled or allocated for good while it
        is captured."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with (
            self._one_at_a_time,
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            work()
        return graph.replay


class DecodeGraphs:
    """Graphs of the steps in which every sequence decodes one token.

    forward(batch) -> (logits, hidden states), which looks tokens up by `token_rows`. max_blocks: columns of the block
    tables. capture(work): work, to be replayed.
    """

    def __init__(
        self,
        forward: Callable[[Batch], Output],
        *,
        max_num_seqs: int,
        max_blocks: int,
        max_model_len: int,
        device: torch.device,
        capture: Callable[[Work], Work],
    ):
        self.sizes = ladder(max_num_seqs)
        self._device = device
        self._max_blocks = max_blocks
        self._max_model_len = max_model_len
        self._arguments = torch.zeros(max_num_seqs * (4 + max_blocks), dtype=torch.int32, device=device)
        self._starts = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device)
        self._outputs: Output | None = None
        # The largest first: its memory is what the others reuse.
        self._replays = {size: capture(self._padded(forward, size)) for size in reversed(self.sizes)}

    def fits(self, batch: Batch) -> bool:
        return batch.max_query_len == 1 and batch.num_logits == batch.num_seqs == batch.num_tokens

    def replay(self, batch: Batch) -> Output:
        """What forward(batch) gives; valid until the next call."""
        size, rows = self.sizes[bisect_left(self.sizes, batch.num_seqs)], batch.num_seqs
        used = size * (4 + self._max_blocks)
        host = page_locked(used, torch.int32, self._device)
        staged = _split(host.numpy(), size, self._max_blocks)
        for name, padding in _PADDING.items():
            staged[name][:rows] = getattr(batch, name).numpy()
            staged[name][rows:] = padding
        tables = batch.block_tables.numpy()
        staged["block_tables"][:rows, : tables.shape[1]] = tables
        staged["block_tables"][rows:, 0] = 0
        self._arguments[:used].copy_(host, non_blocking=True)
        self._replays[size]()
        assert self._outputs is not None
        logits, hidden = self._outputs
        return logits[:rows], hidden[:rows]

    def _padded(self, forward: Callable[[Batch], Output], size: int) -> Work:
        """A step of this size. Until the first batch comes all of it is padding, for capturing runs it: zeros would
        write to block 0 and attend to nothing, which is NaN."""
        self._arguments.zero_()  # the pieces of another size lie elsewhere
        arguments: dict[str, Any] = _split(self._arguments, size, self._max_blocks)
        for name, padding in _PADDING.items():
            arguments[name].fill_(padding)
        batch = Batch(
            **arguments,
            token_ids=arguments["token_rows"],  # to be looked up
            query_start_loc=self._starts[: size + 1],
            logits_indices=self._starts[:size],
            num_tokens=size,
            num_seqs=size,
            num_logits=size,
            max_query_len=1,
            max_seq_len=self._max_model_len,
        )

        def work() -> None:
            found = forward(batch)
            if self._outputs is None:
                logits, hidden = (x.new_empty(self.sizes[-1], x.shape[1]) for x in found)
                self._outputs = logits, hidden
            for kept, new in zip(self._outputs, found, strict=True):
                kept[:size].copy_(new)

        return work


def _split(flat: Any, size: int, max_blocks: int) -> dict[str, Any]:
    """Views of a flat buffer (torch or NumPy), laid out so that a smaller size takes a shorter copy."""
    views = {name: flat[i * size : (i + 1) * size] for i, name in enumerate(_PADDING)}
    return views | {"block_tables": flat[4 * size : size * (4 + max_blocks)].reshape(size, max_blocks)}
