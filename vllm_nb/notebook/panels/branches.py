"""Which sequences of an engine are forks of which: those that share a prompt and a beginning of its answer."""

from bisect import bisect_left, insort
from dataclasses import dataclass

from vllm_nb.inspection.view import EngineView

_ABOVE_ALL = 1 << 62  # more than any token id


@dataclass(frozen=True)
class Branch:
    """A sequence that has log-probabilities. root: the sequence whose prompt is that of the whole tree; parent: what it
    was forked from, at output token `at`; of a root, None and 0."""

    number: int
    root: int
    parent: int | None = None
    at: int = 0

    def prompt(self, view: EngineView) -> list[int]:
        """The prompt of the tree."""
        root = view.sequences[self.root]
        return root.tokens[: root.prompt_len]

    def output(self, view: EngineView) -> list[int]:
        """All tokens after it, those that were kept included."""
        return view.sequences[self.number].tokens[view.sequences[self.root].prompt_len :]


def branches_of(view: EngineView) -> list[Branch]:
    """In order of arrival. A fork's prompt goes on after the prompt of its tree, with the parent's tokens but for the
    last: of several that could be its parent, the one that shares most, that is with the shortest prompt."""
    found: dict[int, Branch] = {}
    known: list[tuple[list[int], int, int]] = []  # tokens, length of the tree's prompt, sequence: sorted, so those that
    for number in sorted(view.sequences):  # begin alike stand together
        seq = view.sequences[number]
        if not seq.logprobs:
            continue
        kept = seq.tokens[: seq.prompt_len - 1]
        alike = known[bisect_left(known, (kept,)) : bisect_left(known, ([*kept, _ABOVE_ALL],))]
        length, parent = min((entry[1:] for entry in alike), default=(seq.prompt_len, number))
        if length < seq.prompt_len:
            found[number] = Branch(number, found[parent].root, parent, seq.prompt_len - length - 1)
        else:
            length, found[number] = seq.prompt_len, Branch(number, number)
        insort(known, (seq.tokens, length, number))
    return list(found.values())
