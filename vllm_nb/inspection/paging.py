"""What attention reads in a step: a sequence's logical blocks, its block table, and the physical blocks behind it."""

from dataclasses import dataclass

from vllm_nb.inspection.info import EngineInfo
from vllm_nb.inspection.view import EngineView, SequenceView


@dataclass(frozen=True)
class Reads:
    """One sequence in one step, whose queries are the tokens `first` to `last`, both included.

    blocks: the block table, as far as it is read: logical block -> physical block. window_start: the first token that
    sliding-window layers read, None where there are none; likewise full: whether any layer reads the whole context.
    """

    sequence: SequenceView
    first: int
    last: int
    blocks: list[int]
    window_start: int | None
    full: bool

    @property
    def context(self) -> int:
        """Tokens that the last query sees in layers without a window."""
        return self.last + 1

    def reads(self, logical: int, size: int) -> str:
        """Which layers read a logical block of `size` tokens: all, full, or none (then the window has left it)."""
        in_window = self.window_start is not None and (logical + 1) * size > self.window_start
        if self.window_start is None or in_window:
            return "all"
        return "full" if self.full else "none"


def reads_of(view: EngineView, sequence: int) -> Reads | None:
    """What the view's last step read for a sequence; None where it was not in that step."""
    count, seq = view.batch.get(sequence), view.sequences.get(sequence)
    if count is None or seq is None:
        return None
    running = seq.status == "running"
    table, end = (seq.blocks, seq.computed) if running else (seq.last_blocks, seq.last_computed)
    if not table:
        return None
    blocks = table[: -(-end // view.info.block_size)]
    return Reads(seq, end - count, end - 1, blocks, _window_start(view.info, end - count), _any_full(view.info))


def _window_start(info: EngineInfo, query: int) -> int | None:
    """The first query sees the most of the past."""
    if info.sliding_window is None or (info.sliding_layers is not None and not any(info.sliding_layers)):
        return None
    return max(0, query + 1 - info.sliding_window)


def _any_full(info: EngineInfo) -> bool:
    return info.sliding_window is None or (info.sliding_layers is not None and not all(info.sliding_layers))
