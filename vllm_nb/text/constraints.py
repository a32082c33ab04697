"""Grammars compiled for one vocabulary: outside the engine thread, within limits, and only once."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vllm_nb.errors import RequestError
from vllm_nb.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

log = logging.getLogger(__name__)

MAX_SECONDS = 10.0  # to wait for a grammar; the limits below end its compilation well before on any machine
MAX_CACHED = 64
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 400_000,
    "step_lexer_fuel": 200_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
_MAX_MESSAGE = 300  # characters of what the library says


class Grammars:
    """eos_ids: what ends an output. vocab_size: of the model's logits. control_ids: tokens that are no text in any
    grammar, besides the special ones."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: Iterable[int], vocab_size: int, control_ids: Iterable[int] = ()):
        self.eos_ids = tuple(sorted(i for i in eos_ids if i < vocab_size))
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._control_ids = tokenizer.special_ids.union(control_ids)
        self._cache: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(2, "vllm-nb-grammar")

    def submit(self, grammar: str) -> "Future[LLMatcher]":
        """A matcher at the grammar's beginning, in the future. Its result raises RequestError."""
        return self._workers.submit(self._matcher, grammar)

    def _matcher(self, grammar: str) -> "LLMatcher":
        with self._lock:
            found = self._cache.get(grammar)
            if found is not None:
                self._cache.move_to_end(grammar)
                return found.deep_copy()
        compiled = self._compile(grammar)
        with self._lock:
            self._cache[grammar] = compiled
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
            return compiled.deep_copy()

    def _compile(self, grammar: str) -> "LLMatcher":
        from llguidance import LLMatcher, LLParserLimits

        matcher = LLMatcher(self._vocabulary, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))
        problem = matcher.get_error()
        if not problem:
            probe = matcher.deep_copy()  # the beginning is the dearest part, and shows what is too costly
            probe.compute_bitmask()
            probe.compute_ff_tokens()
            problem = probe.get_error()
        if problem:
            raise RequestError(f"the structured output cannot be compiled: {_told(problem)}")
        return matcher

    @cached_property
    def _vocabulary(self) -> "LLTokenizer":
        """Every token's bytes, once; 0.2 s for 50,000 tokens."""
        from llguidance import LLTokenizer, TokenizerWrapper

        wrapper = TokenizerWrapper(_Vocabulary(self._tokenizer, self._control_ids, self.eos_ids, self._vocab_size))
        return LLTokenizer(wrapper, n_vocab=self._vocab_size, eos_token=list(self.eos_ids) or None)


class _Vocabulary:
    """What llguidance asks of a tokenizer: a token's bytes, 0xFF before the name of one that is no text."""

    def __init__(self, tokenizer: Tokenizer, control_ids: Iterable[int], eos_ids: tuple[int, ...], vocab_size: int):
        controls = {i for i in control_ids if i < vocab_size} | set(eos_ids)
        self._tokenizer = tokenizer
        self.eos_token_id = eos_ids[0] if eos_ids else 0
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = sorted(controls)
        self.tokens = [
            b"\xff" + tokenizer.token_text(i).encode() if i in controls else tokenizer.token_bytes(i)
            for i in range(min(vocab_size, tokenizer.vocab_size))
        ]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text.decode(errors="replace") if isinstance(text, bytes) else text)


def _told(problem: str) -> str:
    """The library's message without its drawing of the place."""
    lines: list[Any] = [line.strip() for line in problem.splitlines() if line.strip(" |^")]
    return "; ".join(lines)[:_MAX_MESSAGE]
