"""Which kernels run and on how many threads: chosen once, on first use, and checked before they are trusted."""

import threading
import warnings
from dataclasses import dataclass

from vllm_nb.kernels.cpu import isa as isas
from vllm_nb.kernels.cpu.isa import Isa
from vllm_nb.kernels.cpu.library import Library, Progress
from vllm_nb.kernels.cpu.threads import Team, default_threads


@dataclass(frozen=True)
class State:
    """The chosen variant, its compiled kernels and the threads that run them."""

    isa: Isa
    library: Library
    team: Team


# compiled ahead by `prepare`; the others (one per weight format) when a weight of theirs is packed
COMMON = (
    "region", "alone", "quantize", "round_rows", "rms_norm", "add_rms_norm", "silu_mul", "gelu_tanh_mul", "softcap",
    "embed_quantised", "embed_floats", "gather_rows", "sample", "token_logprobs",
)  # fmt: skip

_state: State | None = None
_lock = threading.RLock()
_rejected: list[str] = []


def state() -> State:
    """The backend as chosen, choosing it on first use."""
    return _state or _choose(None)


def prepare(progress: Progress | None = None) -> None:
    """Choose the variant, compile what is not in the cache yet, and check that it computes rightly.

    progress: called with (what is done, kernels ready, kernels wanted) while anything has to be compiled.
    """
    _choose(progress).library.load(COMMON, progress)


def select(variant: str | None) -> None:
    """Use this variant ("portable", ...; see `describe`), or the best one again with None.

    For tests and comparisons. Weights and graphs made before stay valid only with the variant that made them.
    ValueError for a name this processor cannot run.
    """
    global _state
    with _lock:
        chosen = isas.named(variant) if variant else None
        _state = None
        if chosen:
            _state = _make(chosen)


def set_threads(threads: int | None) -> None:
    """Threads from the next step on, of all that runs in this process; None: one per physical core, which is where it
    begins. ValueError below 1."""
    state().team.resize(default_threads() if threads is None else threads)


def describe() -> dict[str, str | int | list[str]]:
    """What was chosen, for `vllm-nb doctor`: variant, variants that can run here, threads, OpenMP runtime, cache."""
    chosen = state()
    return {
        "processor": isas.host_name(),
        "variant": chosen.isa.name,
        "available": [isa.name for isa in isas.available()],
        "rejected": list(_rejected),
        "threads": chosen.team.size,
        "openmp": chosen.team.openmp,
        "cache": str(chosen.library.folder),
    }


def _make(isa: Isa, progress: Progress | None = None) -> State:
    library = Library(isa)
    library.load(("region", "alone", "quantize", "linear_q8"), progress)
    return State(isa, library, Team(library))


def _choose(progress: Progress | None) -> State:
    """The best variant that passes its self-test."""
    from vllm_nb.kernels.cpu.selftest import passes

    global _state
    with _lock:
        if _state is not None:
            return _state
        for isa in isas.available():
            candidate = _make(isa, progress)
            if passes(candidate):
                _state = candidate
                return candidate
            _rejected.append(isa.name)
            warnings.warn(f"CPU kernels: variant {isa.name} computes wrongly here; trying the next one", stacklevel=3)
        raise RuntimeError(f"CPU kernels: no variant computes rightly on {isas.host_name()}; use the reference backend")
