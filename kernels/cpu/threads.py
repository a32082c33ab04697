"""A step runs in one OpenMP parallel region, in the OpenMP runtime that torch has loaded, so both share one team."""

import ctypes
import ctypes.util
import threading
import warnings
from pathlib import Path

import numpy as np
import psutil
import torch

from vllm_nb.kernels.cpu import layout
from vllm_nb.kernels.cpu.library import Library

_SCRATCH_START = 1 << 20


def default_threads() -> int:
    """As many as there are physical cores, and no more than PyTorch was given."""
    return min(psutil.cpu_count(logical=False) or 1, torch.get_num_threads())


class Team:
    """The threads, the memory they share, and the lock that lets in one caller at a time."""

    def __init__(self, library: Library):
        self.library = library
        self.size = default_threads()
        self._lock = threading.Lock()
        self._openmp = _find_openmp()
        if self._openmp is None:
            warnings.warn("no OpenMP runtime found (libgomp): the CPU kernels use one thread", stacklevel=2)
        self._header = np.zeros(layout.HEADER_WORDS, np.int64)
        self._barrier = np.zeros(4 * layout.CACHE_LINE // 8, np.int64)
        self._scratch = np.empty(0, np.uint8)
        self._scratch_bytes = 0
        self._fill_header()

    @property
    def openmp(self) -> str:
        """The OpenMP runtime's name, for humans."""
        return Path(self._openmp._name or "in process").name if self._openmp else "none"

    def resize(self, threads: int) -> None:
        """Use this many threads from the next step on. ValueError below 1."""
        if threads < 1:
            raise ValueError(f"CPU kernels need at least 1 thread, not {threads}")
        with self._lock:
            self.size = threads
            self._grow_scratch(self._scratch_bytes)

    def reserve(self, scratch_bytes: int) -> None:
        """Make sure that each thread has this much private memory."""
        with self._lock:
            if scratch_bytes > self._scratch_bytes:
                self._grow_scratch(max(scratch_bytes, _SCRATCH_START))

    def run(self, program: np.ndarray, tokens: int, seqs: int, logits: int, ticks: np.ndarray | None = None) -> None:
        """Run a program (int64 [instructions, INSTRUCTION_WORDS]) on a batch of these sizes."""
        with self._lock:
            header = self._header
            header[layout.NUM_TOKENS], header[layout.NUM_SEQS], header[layout.NUM_LOGITS] = tokens, seqs, logits
            header[layout.PROGRAM_AT], header[layout.PROGRAM_LENGTH] = program.ctypes.data, len(program)
            header[layout.TICKS_AT] = 0 if ticks is None else ticks.ctypes.data
            if self._openmp is None or self.size == 1:
                self._alone(header.ctypes.data)
            else:
                self._parallel(self._region, header.ctypes.data, self.size, 0)

    def _grow_scratch(self, scratch_bytes: int) -> None:
        # a page apart, so that no two threads share a cache line
        self._scratch_bytes = (scratch_bytes + 4095) // 4096 * 4096 + 4096
        self._scratch = np.empty((self.size + 1) * self._scratch_bytes, np.uint8)
        start = self._scratch.ctypes.data
        self._header[layout.SCRATCH_AT] = (start + 4095) // 4096 * 4096
        self._header[layout.SCRATCH_BYTES] = self._scratch_bytes

    def _fill_header(self) -> None:
        line = layout.CACHE_LINE
        barrier = (self._barrier.ctypes.data + line - 1) // line * line
        self._header[layout.BARRIER_AT], self._header[layout.COUNTER_AT] = barrier, barrier + 2 * line
        self._region = self.library.address("region")
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_int64)(self.library.address("alone"))
        if self._openmp is None:
            return
        for word, name in (
            (layout.THREAD_NUMBER_AT, "omp_get_thread_num"),
            (layout.THREAD_COUNT_AT, "omp_get_num_threads"),
        ):
            self._header[word] = _address(self._openmp, name)
        self._header[layout.YIELD_AT] = _address(ctypes.CDLL(None), "sched_yield")
        # GOMP_parallel(body, data, threads, flags): gcc's entry point, which LLVM's runtime has too
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        self._parallel = kind(_address(self._openmp, "GOMP_parallel"))


def _address(library: ctypes.CDLL, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def _find_openmp() -> ctypes.CDLL | None:
    """The runtime already in the process, else torch's own copy, else the system's."""
    folder = Path(torch.__file__).parent / "lib"
    bundled = [str(path) for pattern in ("libgomp*", "libomp*", "libiomp5*") for path in folder.glob(pattern)]
    system = [name for stem in ("gomp", "omp") if (name := ctypes.util.find_library(stem))]
    for name in (None, *bundled, *system):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        if hasattr(library, "GOMP_parallel"):
            return library
    return None
