"""A model's forward pass as one call.

    graph = capture(model.forward, batch, kv)      # batch: static buffers of the largest size
    logits, hidden = graph.replay(num_tokens, num_seqs, num_logits)

The model's Python runs once. Row counts are not baked in: instructions say "a row for each token" or "for each row of
logits", so one graph serves every batch up to the buffers' size, prompts and decoding alike.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vllm_nb.kernels.cpu import layout
from vllm_nb.kernels.cpu.formats import BLOCK, TILE
from vllm_nb.kernels.cpu.program import Capture, start_capture


class Graph:
    """logits [max rows, vocabulary], hidden [max tokens, K]: those of the last replay; static memory."""

    def __init__(self, program: Capture, logits: Tensor, hidden: Tensor):
        self.logits, self.hidden = logits, hidden
        self._program = program
        self._code = program.assembled()

    @property
    def activation_bytes(self) -> int:
        """Memory of all results between the ops, at the largest batch."""
        return self._program.bytes

    def replay(self, num_tokens: int, num_seqs: int, num_logits: int) -> tuple[Tensor, Tensor]:
        """Run the pass on what the batch's buffers hold now. Returns (logits[:num_logits], hidden[:num_tokens]), valid
        until the next call."""
        self._program.state.team.run(self._code, num_tokens, num_seqs, num_logits)
        return self.logits[:num_logits], self.hidden[:num_tokens]

    def profile(self, num_tokens: int, num_seqs: int, num_logits: int, repeats: int = 10) -> dict[str, float]:
        """Share of a step's time by kernel, measured on the first thread, waiting included."""
        ticks = np.zeros(len(self._code), np.int64)
        for _ in range(repeats):
            self._program.state.team.run(self._code, num_tokens, num_seqs, num_logits, ticks)
        totals: dict[str, float] = {}
        for name, count in zip(self._program.names, ticks, strict=True):
            totals[name] = totals.get(name, 0.0) + float(count) / max(1, ticks.sum())
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def operations(self, num_tokens: int, num_logits: int) -> dict[str, int]:
        """Multiplications and additions of the products with weights, by packed format."""
        totals: dict[str, int] = {}
        for name, words in zip(self._program.names, self._code, strict=True):
            if name.startswith("linear_"):
                kind, _, tiles, blocks = (int(word) for word in words[layout.ARGUMENTS_AT :][:4])
                rows = num_logits if kind == layout.NUM_LOGITS else num_tokens
                form = name.removeprefix("linear_")
                totals[form] = totals.get(form, 0) + 2 * rows * TILE * tiles * BLOCK * blocks
        return totals


def capture(forward: Callable[[Any, Sequence[Any]], tuple[Tensor, Tensor]], batch: Any, kv: Sequence[Any]) -> Graph:
    """Record forward(batch, kv), which gives logits and hidden states, over the batch's buffers, without computing
    anything."""
    program = Capture()
    start_capture(program)
    try:
        logits, hidden = forward(batch, kv)
    finally:
        start_capture(None)
    program.keep(batch, kv, forward)
    return Graph(program, logits, hidden)
