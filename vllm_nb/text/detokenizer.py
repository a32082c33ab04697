"""Token ids to text as they come. Exact, and constant work a token: bytes go through one UTF-8 decoder."""

import codecs
from collections.abc import Sequence

from vllm_nb.text.tokenizer import Tokenizer

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one continuation. A character split over tokens is held back until it is whole."""

    def __init__(self, tokenizer: Tokenizer):
        self._token_bytes = tokenizer.token_bytes
        self._decoder = _Utf8Decoder(errors="replace")

    def push(self, ids: Sequence[int]) -> str:
        """The text these tokens complete, U+FFFD for bytes that cannot become a character. Special tokens add none."""
        return self._decoder.decode(b"".join(map(self._token_bytes, ids)))

    def flush(self) -> str:
        """The end: U+FFFD if a character was left unfinished."""
        return self._decoder.decode(b"", final=True)
