"""The text of one answer as it grows, up to the first stop text."""

from collections.abc import Sequence
from functools import lru_cache

from vllm_nb.text.detokenizer import Detokenizer
from vllm_nb.text.tokenizer import Tokenizer


class OutputText:
    """Detokenises one choice and finds stop texts, wherever tokens and pushes cut them.

    Of several stop texts, the one that ends first counts; of those that end together, the one that begins first. Text
    that may yet turn out to begin a stop text is held back. min_tokens: a stop text that ends before that many tokens
    is text like any other.

    stopped: the stop text that was found; the text ends before it, and further tokens are ignored. tokens_used: the
    ids pushed, up to and with the one that completed the stop text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), min_tokens: int = 0):
        self.stopped: str | None = None
        self.tokens_used = 0
        self._detokenizer = Detokenizer(tokenizer)
        self._automaton = _automaton(tuple(stop)) if stop else None
        self._state = 0
        self._held = ""
        self._min_tokens = min_tokens

    def push(self, ids: Sequence[int]) -> str:
        """The text that these tokens make safe to show."""
        if self._automaton is None:
            self.tokens_used += len(ids)
            return self._detokenizer.push(ids)
        shown = []
        for token_id in ids:
            if self.stopped is not None:
                break
            self.tokens_used += 1
            shown.append(self._scan(self._automaton, self._detokenizer.push((token_id,))))
        return "".join(shown)

    def scan(self, text: str, num_tokens: int) -> str:
        """The same for text that somebody else has made of so many tokens."""
        self.tokens_used += num_tokens
        if self._automaton is None or self.stopped is not None:
            return text if self.stopped is None else ""
        return self._scan(self._automaton, text)

    def finish(self) -> str:
        """The rest, once no more tokens come: what was held back, and U+FFFD for half a character."""
        if self.stopped is not None:
            return ""
        rest = self._detokenizer.flush()
        if self._automaton is not None:
            rest = self._scan(self._automaton, rest)
        held, self._held = self._held, ""
        return rest + held

    def _scan(self, automaton: "_Automaton", text: str) -> str:
        """What of the held text and `text` can no longer begin a stop text."""
        whole = self._held + text
        may_stop = self.tokens_used >= self._min_tokens
        state, step, found = self._state, automaton.step, automaton.found
        for end, char in enumerate(text, start=len(self._held) + 1):
            state = step(state, char)
            if may_stop and (stop := found[state]) is not None:
                self.stopped, self._held = stop, ""
                return whole[: end - len(stop)]
        self._state = state
        safe = len(whole) - automaton.pending[state]
        self._held = whole[safe:]
        return whole[:safe]


class _Automaton:
    """Aho and Corasick's: a state is the longest end of the text that begins a stop text. Immutable once built.

    found: the longest stop text that ends here. pending: the length of the longest end that may go on to be one.
    """

    def __init__(self, stops: Sequence[str]):
        self._next: list[dict[str, int]] = [{}]
        self.found: list[str | None] = [None]
        self.pending = [0]
        for stop in stops:
            self._add(stop)
        self._fallback = [0] * len(self._next)
        level = list(self._next[0].values())
        while level:
            level = [child for state in level for child in self._link_children(state)]

    def step(self, state: int, char: str) -> int:
        while (following := self._next[state].get(char)) is None:
            if not state:
                return 0
            state = self._fallback[state]
        return following

    def _add(self, stop: str) -> None:
        state = 0
        for char in stop:
            following = self._next[state].get(char)
            if following is None:
                following = self._next[state][char] = len(self._next)
                self._next.append({})
                self.found.append(None)
                self.pending.append(self.pending[state] + 1)
            state = following
        self.found[state] = stop

    def _link_children(self, state: int) -> list[int]:
        """Fallbacks of the states below `state`, whose own is known."""
        for char, child in self._next[state].items():
            fallback = self._fallback[child] = self.step(self._fallback[state], char)
            self.found[child] = self.found[child] or self.found[fallback]
            if not self._next[child]:
                self.pending[child] = self.pending[fallback]
        return list(self._next[state].values())


@lru_cache(maxsize=64)
def _automaton(stops: tuple[str, ...]) -> _Automaton:
    """Shared by the choices of a request, and by requests with the same stop texts."""
    return _Automaton(stops)
