"""Programs: a sequence of kernel calls that runs as one call.

An op outside a capture makes a program of its own and runs it at once. While a forward pass is captured its ops append
to one program instead; their results live in a pool whose memory is reused as tensors are dropped.
"""

import threading
import weakref

import numpy as np
import torch
from torch import Tensor

from vllm_nb.kernels.cpu import layout
from vllm_nb.kernels.cpu.backend import State, state

Argument = int | Tensor | None


def float_bits(value: float) -> int:
    """A float32 as an instruction's argument."""
    return int(np.float32(value).view(np.int32))


class Program:
    """Kernel calls in order, the memory they use, and what keeps it alive."""

    def __init__(self) -> None:
        self.state: State = state()
        self.names: list[str] = []
        self._words: list[np.ndarray] = []
        self._kept: list[object] = []

    def add(self, kernel: str, *args: Argument, barrier: bool = True) -> None:
        """Call `kernel` with these arguments: numbers as they are, tensors by address, None as 0.

        barrier: the next call waits until all threads are done with this one.
        """
        words = np.zeros(layout.INSTRUCTION_WORDS, np.int64)
        words[0] = self.state.library.address(kernel)
        words[1] = layout.BARRIER if barrier else 0
        for place, value in enumerate(args, layout.ARGUMENTS_AT):
            words[place] = value.data_ptr() if isinstance(value, Tensor) else value or 0
        self.names.append(kernel)
        self._words.append(words)
        self.keep(*(value for value in args if isinstance(value, Tensor) and not self._is_pooled(value)))

    def _is_pooled(self, x: Tensor) -> bool:
        return False

    def keep(self, *things: object) -> None:
        """Keep things alive as long as the program."""
        self._kept.extend(things)

    def empty(self, rows_like: Tensor, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A result [rows of rows_like, columns]."""
        return torch.empty(rows_like.shape[0], columns, dtype=dtype)

    def row_kind(self, x: Tensor) -> int:
        """Which number of the batch says how many rows x has."""
        return layout.NUM_TOKENS

    def assembled(self) -> np.ndarray:
        """int64 [instructions, INSTRUCTION_WORDS]"""
        return np.stack(self._words)


class Capture(Program):
    """The program of a forward pass, recorded over tensors of the largest size."""

    def __init__(self) -> None:
        super().__init__()
        self._free: dict[int, list[np.ndarray]] = {}
        self._kinds: dict[int, int] = {}
        self.bytes = 0

    def _is_pooled(self, x: Tensor) -> bool:
        """Whether x is a result, whose memory must go back to the pool; inputs and weights outlive the program."""
        return x.untyped_storage().data_ptr() in self._kinds

    def empty(self, rows_like: Tensor, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        shape = (rows_like.shape[0], columns)
        size = shape[0] * shape[1] * dtype.itemsize
        memory = self._take((size + 4095) // 4096 * 4096)
        # a view of its own for each result: when the last tensor on it goes, its memory is free for the next
        view = memory[:size]
        weakref.finalize(view, self._give_back, memory)
        result = torch.frombuffer(view, dtype=dtype).view(shape)
        self._kinds[memory.ctypes.data] = self.row_kind(rows_like)
        return result

    def row_kind(self, x: Tensor) -> int:
        return self._kinds.get(x.untyped_storage().data_ptr(), layout.NUM_TOKENS)

    def rows_are_logits(self, x: Tensor) -> None:
        """From here on x has one row for each row of logits."""
        self._kinds[x.untyped_storage().data_ptr()] = layout.NUM_LOGITS

    def _take(self, size: int) -> np.ndarray:
        free = self._free.get(size)
        if free:
            return free.pop()
        self.bytes += size
        memory = np.empty(size + 64, np.uint8)  # untouched memory is not resident
        start = -memory.ctypes.data % 64
        memory = memory[start : start + size]
        self.keep(memory)
        return memory

    def _give_back(self, memory: np.ndarray) -> None:
        self._free.setdefault(len(memory), []).append(memory)


class _CurrentThread(threading.local):
    """The capture that this thread's ops append to, if there is one: other threads may be running steps meanwhile."""

    capture: Capture | None = None


_current = _CurrentThread()


def current() -> Program:
    """Where an op's kernel calls go."""
    return _current.capture or Program()


def start_capture(capture: Capture | None) -> None:
    """Let ops append to `capture`; None: run at once again. RuntimeError for a capture within a capture."""
    if capture is not None and _current.capture is not None:
        raise RuntimeError("kernels.cpu captures one forward pass at a time")
    _current.capture = capture


def finish(program: Program, tokens: int, seqs: int = 1) -> None:
    """Run an op's program, unless it is being captured."""
    if not isinstance(program, Capture):
        program.state.team.run(program.assembled(), tokens, seqs, tokens)


def contiguous(x: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """x as kernels read it. TypeError for another dtype; a copy where rows do not follow each other."""
    if x.dtype != dtype:
        raise TypeError(f"kernels.cpu expects {name} in {dtype}, not {x.dtype}")
    if x.is_contiguous():
        return x
    if _current.capture is not None:
        raise RuntimeError(f"kernels.cpu cannot capture a pass in which {name} is not contiguous: {tuple(x.stride())}")
    return x.contiguous()


def as_floats(values: Tensor | None) -> Tensor | None:
    """A small parameter (norm, bias) as float32."""
    return None if values is None else values.detach().to(torch.float32).contiguous()
