"""What suits a kind of processor, found by measuring (docs/cpu.md). Results are the same bits with any of it.

How far ahead of its use memory is asked for, and into which cache: Intel's cores want it in the first. AMD's are held
up by that: they want it in the second, and nothing at all where one row of weights is read in one long run, which they
fetch by themselves.
"""

from dataclasses import dataclass

from vllm_nb.kernels.cpu.isa import is_amd


@dataclass(frozen=True)
class Tuning:
    """Ahead, 0 being not at all: bytes of weights in products of one row, of few rows, and of groups of rows (there of
    two tiles together); sub-blocks of 16 keys in attention.

    fetch_near: into the first cache, not only into the second
    keys_in_order: a sub-block of keys is read to its end before the next, though several would share loads of queries
    panel_rows: multiplied with a panel at a time. With 4, sums stay in registers; with 8, weights are loaded less often
    """

    fetch_near: bool
    one_row_ahead: int
    few_rows_ahead: int
    groups_ahead: int
    keys_ahead: int
    keys_in_order: bool
    panel_rows: int


INTEL = Tuning(
    fetch_near=True, one_row_ahead=4096, few_rows_ahead=4096, groups_ahead=4096, keys_ahead=4, keys_in_order=False,
    panel_rows=8,
)  # fmt: skip
AMD = Tuning(
    fetch_near=False, one_row_ahead=0, few_rows_ahead=8192, groups_ahead=6144, keys_ahead=12, keys_in_order=True,
    panel_rows=4,
)  # fmt: skip


def tuning() -> Tuning:
    """For this processor; others get Intel's."""
    return AMD if is_amd() else INTEL
