"""Derived merge rules against sentencepiece's own procedure, written out: join the best-scored neighbours, repeat."""

import itertools
from random import Random

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from vllm_nb.text.spm_merges import spm_merges


def greedy(text: str, scores: dict[str, float]) -> tuple[list[str], tuple[str, str] | None]:
    """The parts at the end, and the two parts that were joined last."""
    parts, last = list(text), None
    while True:
        joined = [(scores.get(a + b, -np.inf), -i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        best, place = max(joined, default=(-np.inf, 0))
        if best == -np.inf:
            return parts, last
        last = (parts[-place], parts[-place + 1])
        parts[-place : -place + 2] = ["".join(last)]


def last_steps(scores: dict[str, float]) -> set[tuple[str, str]]:
    """The rules that ever come into play: the last step of every piece that comes about."""
    ends = [greedy(piece, scores) for piece in scores]
    return {last for parts, last in ends if len(parts) == 1 and last is not None}


def by_rules(text: str, pieces: list[str], rules: np.ndarray) -> list[str]:
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [(pieces[a], pieces[b]) for a, b in rules.tolist()]
    return Tokenizer(models.BPE(vocabulary, merges)).encode(text).tokens


words = st.lists(st.text("abc", min_size=2, max_size=6), unique=True, max_size=40)


def trained(draw: st.DrawFn) -> dict[str, float]:
    """Pieces as training makes them: each joins two that text so far ends up as, and scores worse than those before."""
    scores = {"a": 0.0, "b": -1.0, "c": -2.0}
    for _ in range(draw(st.integers(0, 30))):
        a, b = draw(st.sampled_from(sorted(scores))), draw(st.sampled_from(sorted(scores)))
        if len(a + b) <= 12 and greedy(a + b, scores)[0] == [a, b]:
            scores[a + b] = -float(len(scores))
    return scores


def check(scores: dict[str, float], texts: list[str]) -> set[tuple[str, str]]:
    """The rules, which must include all that come into play."""
    pieces = list(scores)
    rules = spm_merges(pieces, np.array(list(scores.values()), np.float32))
    kept = {(pieces[a], pieces[b]) for a, b in rules.tolist()}
    assert last_steps(scores) <= kept
    for text in texts:
        assert by_rules(text, pieces, rules) == greedy(text, scores)[0], text
    return kept


long_texts = st.lists(st.text("abc", max_size=30), min_size=1, max_size=6)


@given(words, st.randoms(use_true_random=False), long_texts)
@settings(max_examples=120, deadline=None)
@example(["aa", "aaa", "aaaa"], Random(0), ["aaaaaaa"])
def test_any_pieces_and_scores_give_what_greedy_joining_gives(words, random, texts):
    pieces = ["a", "b", "c", *words]
    values = random.sample(range(1000), len(pieces))
    check({piece: -float(value) for piece, value in zip(pieces, values, strict=True)}, texts)


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_of_a_trained_vocabulary_only_the_rules_that_come_into_play_are_kept(data):
    scores = trained(data.draw)
    assert check(scores, data.draw(long_texts)) == last_steps(scores)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_trained_vocabulary_with_some_scores_changed_by_hand(data):
    """Then parts may score worse than their whole, and what is known of trained ones must not be used."""
    scores = trained(data.draw)
    for _ in range(data.draw(st.integers(1, 4))):
        scores[data.draw(st.sampled_from(sorted(scores)))] = data.draw(st.integers(-35, 35)) + 0.5
    distinct = {piece: score - i / 100 for i, (piece, score) in enumerate(scores.items())}
    check(distinct, data.draw(long_texts))


def test_prunes_to_one_rule_a_piece():
    pieces = ["a", "b", "ab", "abab", "ababab", "aba"]
    rules = spm_merges(pieces, -np.arange(6, dtype=np.float32))
    assert [(pieces[a], pieces[b]) for a, b in rules] == [("a", "b"), ("ab", "ab"), ("abab", "ab"), ("ab", "a")]


def test_nothing_to_join():
    assert spm_merges([], np.empty(0, np.float32)).shape == (0, 2)
    assert spm_merges(["a", "é"], np.zeros(2, np.float32)).shape == (0, 2)
