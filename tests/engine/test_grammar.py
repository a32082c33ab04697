"""Masks of grammars against an oracle that knows the language: which tokens may follow is looked up, not derived."""

import re
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from vllm_nb.api import Engine, Prompt
from vllm_nb.config import EngineConfig
from vllm_nb.engine.grammar import Grammar, forbid, unpacked
from vllm_nb.errors import RequestError
from vllm_nb.sampling import SamplingParams, StructuredOutputs
from vllm_nb.text.constraints import MAX_CACHED, Grammars
from vllm_nb.text.grammar import output_grammar
from vllm_nb.text.tokenizer import Tokenizer
from vllm_nb.weights.checkpoint import open_checkpoint

WORDS = ["yes", "yesterday", "no", "nobody", "ünïcödé", "日本", "😀!", "y"]


@dataclass
class Vocabulary:
    tokenizer: Tokenizer
    size: int  # of the model's logits
    grammars: Grammars
    tokens: list[bytes]


@pytest.fixture(scope="module", params=["tiny_model_path", "smollm2_path", "gemma3_path"])
def vocabulary(request):
    """Bytes, from a folder; BPE and sentencepiece, from GGUF."""
    with closing(open_checkpoint(request.getfixturevalue(request.param))) as checkpoint:
        tokenizer, size = checkpoint.load_tokenizer(), checkpoint.config.vocab_size
    tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    return Vocabulary(tokenizer, size, Grammars(tokenizer, tokenizer.eos_ids, size), tokens)


def matcher(grammars, **outputs):
    return grammars.submit(output_grammar(StructuredOutputs(**outputs))).result()


def allowed(grammar, size, stop_ids=(), may_stop=True) -> set[int]:
    bits = np.zeros(-(-size // 32), np.uint32)
    grammar.fill(bits, np.array(stop_ids, np.int64), may_stop)
    return set(np.flatnonzero(unpacked(bits[None], size)[0]).tolist())


def test_masks_of_a_choice(vocabulary):
    tokenizer, size, grammars = vocabulary.tokenizer, vocabulary.size, vocabulary.grammars
    tokens = vocabulary.tokens
    stop = [7, *tokenizer.eos_ids]
    for word in WORDS:
        grammar = Grammar(matcher(grammars, choice=WORDS), grammars.eos_ids)
        said = b""
        for token in tokenizer.encode(word):
            ends = {option.encode() for option in WORDS}
            rests = {end[len(said) : i] for end in ends if end.startswith(said) for i in range(len(said) + 1, 99)}
            rests.discard(b"")
            following = {i for i, data in enumerate(tokens) if data in rests}
            finished = set(stop) if said in ends else set()
            mask = allowed(grammar, size, stop)
            if is_forced(said, ends):  # then only the tokens that the text would be cut into
                assert token in mask <= following
            else:
                assert mask == following | finished
            assert allowed(grammar, size, stop, may_stop=False) == (mask - set(stop) or finished)
            assert grammar.advance(token)
            said += tokens[token]
        longer = any(option.encode().startswith(said) and option.encode() != said for option in WORDS)
        assert grammar.is_complete is not longer


def is_forced(said: bytes, ends: set[bytes]) -> bool:
    """Whether there is but one byte that may come next."""
    options = [end for end in ends if end.startswith(said)]
    return said not in ends and len({end[len(said)] for end in options}) == 1


def test_masks_of_a_regular_expression(vocabulary):
    """Python's own engine says what can still match: every prefix of [a-c]{2}\\d+x is a prefix of a match."""
    tokenizer, size, grammars = vocabulary.tokenizer, vocabulary.size, vocabulary.grammars
    prefix = re.compile(rb"(?:[a-c]?|[a-c]{2}\d*|[a-c]{2}\d+x)\Z")
    grammar = Grammar(matcher(grammars, regex=r"[a-c]{2}[0-9]+x"), grammars.eos_ids)
    said = b""
    for token in tokenizer.encode("ab12x"):
        data = vocabulary.tokens
        assert allowed(grammar, size) == {i for i, piece in enumerate(data) if piece and prefix.match(said + piece)}
        assert grammar.advance(token)
        said += data[token]
    assert grammar.is_complete


def test_control_tokens_are_never_text(vocabulary):
    tokenizer, size, grammars = vocabulary.tokenizer, vocabulary.size, vocabulary.grammars
    grammar = Grammar(matcher(grammars, regex="(.|\n)*"), grammars.eos_ids)
    assert not allowed(grammar, size) & tokenizer.special_ids
    assert not allowed(grammar, size) & set(range(tokenizer.vocab_size, size))


def test_a_fork_goes_its_own_way(vocabulary):
    tokenizer, size, grammars = vocabulary.tokenizer, vocabulary.size, vocabulary.grammars
    first = Grammar(matcher(grammars, choice=["aa", "ab"]), grammars.eos_ids)
    (a,) = tokenizer.encode("a")[-1:]
    fork = first.fork()
    before = allowed(fork, size)
    first.advance(a)
    assert allowed(fork, size) == before != allowed(first, size)


def test_a_token_that_does_not_fit_is_an_error(vocabulary):
    tokenizer, size, grammars = vocabulary.tokenizer, vocabulary.size, vocabulary.grammars
    grammar = Grammar(matcher(grammars, choice=["yes"]), grammars.eos_ids)
    assert not grammar.advance(tokenizer.encode("no")[-1])
    assert grammar.error
    assert not grammar.is_complete
    assert len(allowed(grammar, size)) == 1  # something, so that the step goes on


def test_the_cache_is_bounded_and_failures_are_not_kept(vocabulary):
    grammars = vocabulary.grammars
    for i in range(MAX_CACHED + 5):
        matcher(grammars, choice=[f"x{i}"])
    with pytest.raises(RequestError, match=r"the structured output cannot be compiled: .*look-around"):
        matcher(grammars, regex="(?<=a)b")
    assert len(grammars._cache) == MAX_CACHED


def test_preempted_recomputed_and_beside_others_it_is_what_it_is_alone(tiny_model_path):
    """Constrained and free requests, greedy and drawn, on a cache that is too small for them."""
    outputs = [{"regex": "[a-z]{40}"}, {"json": {"type": "array", "items": {"type": "integer"}}}, None]
    params = [
        SamplingParams(seed=i, temperature=i % 2, max_tokens=40, min_tokens=10, n=2, structured_outputs=outputs[i % 3])
        for i in range(6)
    ]
    prompt = Prompt(text="to be or not to be, that is")

    def run(engine, asked):
        streams = [engine.generate_stream(p, prompt) for p in asked]
        return [[choice.token_ids for choice in finished(stream).choices] for stream in streams]

    with Engine(tiny_model_path, EngineConfig(dtype="float32", num_kv_blocks=200)) as roomy:
        alone = [tokens for p in params for tokens in run(roomy, [p])]
    with Engine(tiny_model_path, EngineConfig(dtype="float32", num_kv_blocks=12)) as tight:
        assert run(tight, params) == alone
        assert tight.stats()["preemptions"] > 0
        tight.check_integrity()
        assert all(re.fullmatch("[a-z]{40}", tight.tokenizer.decode(tokens)) for tokens in alone[0])


def finished(stream):
    for _ in stream:
        continue
    return stream.output


def test_min_tokens_holds_back_the_end_as_long_as_there_is_more_to_say(tiny_model_path):
    with Engine(tiny_model_path, EngineConfig(dtype="float32", num_kv_blocks=64)) as engine:
        for seed in range(5):
            params = {"seed": seed, "min_tokens": 12, "max_tokens": 30, "temperature": 1.0}
            wanted = SamplingParams(structured_outputs={"regex": "[ab]+"}, **params)
            assert len(engine.generate(wanted, Prompt(text="x")).token_ids) >= 12
            wanted = SamplingParams(structured_outputs={"regex": "[ab]{3}"}, **params)
            output = engine.generate(wanted, Prompt(text="x"))
            assert (len(output.token_ids), output.finish_reason) == (3, "stop")


def test_unpacked_bits():
    bits = np.random.default_rng(1).integers(0, 2**32, (3, 4), np.uint32)
    expected = [[bits[r, i // 32] >> (i % 32) & 1 for i in range(100)] for r in range(3)]
    assert torch.equal(torch.from_numpy(unpacked(bits, 100)), torch.tensor(expected, dtype=torch.bool))


def test_only_what_is_forbidden_in_the_rows_asked_for_becomes_minus_infinity():
    generator = np.random.default_rng(2)
    before = generator.normal(size=(5, 100)).astype(np.float32)
    bits = generator.integers(0, 2**32, (2, 4), np.uint32)
    logits = torch.from_numpy(before.copy())
    forbid(logits, [3, 1], bits)
    expected = before.copy()
    for row, words in ((3, bits[0]), (1, bits[1])):
        for token in range(100):
            if not words[token // 32] >> (token % 32) & 1:
                expected[row, token] = -np.inf
    np.testing.assert_array_equal(logits.numpy(), expected)
