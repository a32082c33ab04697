"""Which sequences of an engine are forks of which: those that share a prompt and a beginning of its answer."""

from dataclasses import dataclass

from vllm_nb.inspection.view import EngineView


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
    last: of several that could be its parent, the one that shares most."""
    found: list[Branch] = []
    for number in sorted(view.sequences):
        if not view.sequences[number].logprobs:
            continue
        shared, parent = max(((_shared(view, number, other), other) for other in found), default=(0, None), key=_first)
        if parent is None or shared == 0:
            found.append(Branch(number, number))
        else:
            found.append(Branch(number, parent.root, parent.number, shared - 1))
    return found


def _first(pair: tuple[int, "Branch | None"]) -> int:
    return pair[0]


def _shared(view: EngineView, number: int, other: Branch) -> int:
    """One more than the output tokens of `other` that the sequence keeps; 0 where it is no fork of it."""
    seq, prompt, output = view.sequences[number], other.prompt(view), other.output(view)
    given = seq.tokens[len(prompt) : seq.prompt_len]
    if seq.tokens[: len(prompt)] != prompt or not given:
        return 0
    kept = len(given) - 1
    return kept + 1 if output[:kept] == given[:kept] else 0
