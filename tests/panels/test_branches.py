"""Forks among sequences, against the definition taken literally: each sequence compared with all before it."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_nb import replay
from vllm_nb.events import TokenLogprobs
from vllm_nb.inspection.view import EngineView, SequenceView
from vllm_nb.notebook.panels.branches import Branch, branches_of


@pytest.fixture(scope="module")
def view(recording: Path) -> EngineView:
    return replay(recording).end.copy()


LOGPROBS = TokenLogprobs(0, 0, 0, -1.0, 1, [], [], None, None)


def fill(view: EngineView, sequences: list[tuple[list[int], int, bool]]) -> None:
    """Sequences of these (tokens, length of the prompt, whether there are log-probabilities) are all there is."""
    view.sequences = {
        number: SequenceView(
            number, "r", 0, prompt_len, 8, None, {}, 0, 0.0, tokens, logprobs={prompt_len: LOGPROBS} if seen else {}
        )
        for number, (tokens, prompt_len, seen) in enumerate(sequences)
    }


def by_definition(view: EngineView) -> list[Branch]:
    found: list[Branch] = []
    for number, seq in view.sequences.items():
        best, parent = 0, None
        for other in found if seq.logprobs else ():
            prompt, output = other.prompt(view), other.output(view)
            added = seq.tokens[len(prompt) : seq.prompt_len]
            begins = seq.tokens[: len(prompt)] == prompt and output[: len(added) - 1] == added[:-1]
            if added and begins and len(added) > best:
                best, parent = len(added), other
        if seq.logprobs and parent is None:
            found.append(Branch(number, number))
        elif parent is not None:
            found.append(Branch(number, parent.root, parent.number, best - 1))
    return found


TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=6)


@given(st.lists(st.tuples(TOKENS, st.integers(1, 6), st.sampled_from([True, True, True, False])), max_size=12))
def test_forks_are_found_as_the_definition_says(view: EngineView, drawn: list[tuple[list[int], int, bool]]) -> None:
    fill(view, [(tokens, min(prompt_len, len(tokens)), seen) for tokens, prompt_len, seen in drawn])
    assert branches_of(view) == by_definition(view)


def test_a_thousand_answers_to_long_prompts_are_compared_in_no_time(view: EngineView) -> None:
    prompt = list(range(3000))
    fill(view, [([*prompt, number, 1, 2], len(prompt), True) for number in range(1000)])
    start = time.perf_counter()
    branches = branches_of(view)
    assert time.perf_counter() - start < 2  # a comparison of each with each takes 10 s
    assert [branch.parent for branch in branches] == [None] * 1000
    fill(view, [([number, *prompt], len(prompt), True) for number in range(1000)])
    assert len(branches_of(view)) == 1000
