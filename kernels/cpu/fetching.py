"""How far ahead of its use the kernels ask for memory, and into which cache. Found by measuring: see docs/cpu.md.

Intel's cores want it in the first cache. AMD's hold few requests of that kind, and then wait: they want it in the
second, and nothing at all where memory is read in one long run, which they fetch by themselves.
"""

from dataclasses import dataclass

from vllm_nb.kernels.cpu.isa import is_amd


@dataclass(frozen=True)
class Fetching:
    """near: into the first cache, not only the second. Bytes ahead in products of one row, of few rows, and of groups
    of rows (with two tiles' weights, in both together); sub-blocks of 16 keys in attention. 0: not at all. in_order: a
    sub-block of keys is read to its end before the next, though several at a time would share loads of queries."""

    near: bool
    one_row: int
    few_rows: int
    grouped: int
    attention: int
    in_order: bool


INTEL = Fetching(near=True, one_row=4096, few_rows=4096, grouped=4096, attention=4, in_order=False)
AMD = Fetching(near=False, one_row=0, few_rows=8192, grouped=6144, attention=12, in_order=True)


def fetching() -> Fetching:
    """For this processor; others get Intel's."""
    return AMD if is_amd() else INTEL
