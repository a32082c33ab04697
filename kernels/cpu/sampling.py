"""Tokens and log-probabilities from logits, without a sort of the vocabulary."""

import threading

import numpy as np
import torch
from torch import Tensor

from vllm_nb.kernels.cpu import layout
from vllm_nb.kernels.cpu.backend import state
from vllm_nb.kernels.cpu.program import Program, contiguous, finish
from vllm_nb.kernels.reference.sampling import penalize as penalize
from vllm_nb.kernels.reference.sampling import uniforms as uniforms

# temperature, top_k, top_p, min_p, uniform
_KINDS = (torch.float32, torch.int32, torch.float32, torch.float32, torch.float32)
_LOGITS_AT = layout.ARGUMENTS_AT + 1


class SamplingCall:
    """The program of `sample`, of which a step changes addresses instead of building another.

    Engines of one process may share it, so addresses go in and tokens come out under one lock. A parameter's memory may
    change between steps, but not move.
    """

    def __init__(self, max_rows: int, vocabulary: int):
        self.max_rows = max_rows
        self.team = state().team
        self._lock = threading.Lock()
        self.team.reserve(layout.sampling_scratch_bytes(vocabulary))
        # NumPy's: tensors made in inference mode could not be written outside of it
        self._tokens = np.empty(max_rows, np.int32)
        program = Program()
        program.add(
            "sample",
            layout.NUM_TOKENS,
            None,  # the logits and the parameters: other addresses each time
            vocabulary,
            *[None] * len(_KINDS),
            greatest_of_chunks(max_rows, vocabulary),
            torch.from_numpy(self._tokens),
        )
        self._program = program  # owns the memory
        self._given: list[Tensor | None] = [None] * len(_KINDS)
        self._read: list[Tensor | None] = [None] * len(_KINDS)
        self._sizes = [0] * len(_KINDS)
        self._code = program.assembled()

    def __call__(self, logits: Tensor, *parameters: Tensor) -> Tensor:
        """Tokens of logits [R, vocabulary], R at most max_rows; the parameters in the order of `sample`."""
        rows = logits.shape[0]
        with self._lock:
            self._code[0, _LOGITS_AT] = logits.data_ptr()
            # Most are those of the step before. With as little as can be, because after a forward pass all code is far
            # from the processor.
            for place, given in enumerate(parameters):
                if given is not self._given[place]:
                    self._take(place, given)
            if rows > min(self._sizes):  # the kernel would read beyond their end
                raise ValueError(f"sampling {rows} rows needs parameters for each, not {self._sizes}")
            self.team.run(self._code, rows, 1, rows)
            return torch.from_numpy(self._tokens[:rows].copy())

    def _take(self, place: int, given: Tensor) -> None:
        as_read = given.to(_KINDS[place]).contiguous()
        self._given[place] = given if as_read is given else None
        self._read[place] = as_read  # keeps it alive
        self._sizes[place] = as_read.numel()
        self._code[0, _LOGITS_AT + 2 + place] = as_read.data_ptr()


_calls: dict[int, SamplingCall] = {}  # by vocabulary


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor) -> Tensor:
    """One token for each row of logits [R, V], int32 [R]; see `kernels.reference.sample`."""
    logits = contiguous(logits, torch.float32, "logits")
    rows, vocabulary = logits.shape
    call = _calls.get(vocabulary)
    if call is None or call.max_rows < rows or call.team is not state().team:
        call = _calls[vocabulary] = SamplingCall(max(64, rows), vocabulary)
    return call(logits, temperature, top_k, top_p, min_p, uniform)


def greatest_of_chunks(rows: int, vocabulary: int) -> Tensor:
    """Memory for each chunk's greatest logit."""
    return torch.empty(rows * -(-vocabulary // layout.LOGITS_CHUNK), 2, dtype=torch.int64)


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(logprob [R], rank [R], top_ids [R, num_top], top_logprobs); see `kernels.reference.token_logprobs`."""
    logits = contiguous(logits, torch.float32, "logits")
    rows, vocabulary = logits.shape
    num_top = min(num_top, vocabulary)
    ids = token_ids.to(torch.int32).contiguous()
    rank, top_ids = torch.empty(rows, dtype=torch.int32), torch.empty(rows, num_top, dtype=torch.int32)
    top, greatest = torch.empty(rows, num_top), torch.empty(rows)
    total = torch.empty(rows, dtype=torch.float64)
    program = Program()
    found = greatest_of_chunks(rows, vocabulary)
    program.add(
        "token_logprobs",
        layout.NUM_TOKENS,
        logits,
        vocabulary,
        ids,
        num_top,
        found,
        rank,
        top_ids,
        top,
        greatest,
        total,
    )
    finish(program, rows)
    shift = greatest + total.log().float()
    chosen = logits.gather(1, ids.long().unsqueeze(1)).squeeze(1)
    return chosen - shift, rank, top_ids, top - shift.unsqueeze(1)
