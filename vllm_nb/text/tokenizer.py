"""Text to token ids and back, on the `tokenizers` library; from a folder's tokenizer.json or a GGUF's metadata."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, normalizers
from tokenizers import Tokenizer as Backend

from vllm_nb.errors import ModelLoadError, RequestError
from vllm_nb.text.gguf_tokenizer import GgufVocabulary

# Breaks a control token's name in text that must stay text (`shield`); dropped again when that text is encoded. Two
# noncharacters: Unicode keeps them out of texts, and should they come all the same, `shield` protects them too.
_BREAK = "\ufdd0\ufdd1"
# Added tokens that steer the model, though their files do not all say so: <|User|>, in DeepSeek's wide bars too.
_LOOKS_LIKE_CONTROL = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letter for each byte, reversed: printable Latin-1 stands for itself, the rest for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


class Tokenizer:
    """A model's tokenizer. After construction only a cache of tokens' bytes fills, so threads may share it.

    vocab_size: one more than the highest id. bos_id: None if there is none; eos_ids: what the tokenizer's files name
    as ends. special_ids: tokens that are no text, such as <|im_end|>. added_ids: those, and others that are not made of
    smaller tokens, such as <think>, by name. adds_bos: whether encode(add_special=True)
    puts something before the text, nearly always bos_id.
    """

    def __init__(self, backend: Backend, *, bos_id: int | None, eos_ids: tuple[int, ...], prefix: tuple[int, ...]):
        self.bos_id, self.eos_ids, self._prefix = bos_id, eos_ids, prefix
        self.adds_bos = bool(prefix)
        added = backend.get_added_tokens_decoder()
        self._added = {i: token.content for i, token in added.items()}
        self.added_ids: Mapping[str, int] = {name: i for i, name in self._added.items()}
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        model_size = backend.get_vocab_size(with_added_tokens=False)
        self.vocab_size = max(model_size, max(added, default=-1) + 1)
        self._byte_level = _is_byte_level(backend)
        self._bytes: dict[int, bytes] = {}
        self._controls = _Controls([*(t.content for t in added.values() if _is_control(t)), _BREAK])
        # Three views of one model (vocabulary and merges are shared), because what is found in the text before merging
        # is the library's state, and changing it for one call would change it for all threads.
        self._parsing = backend
        self._plain = _view(backend, added, special=True)
        self._plain.encode_special_tokens = True
        self._shielded = _view(backend, added, special=False)
        drop = normalizers.Replace(_BREAK, "")
        self._shielded.normalizer = normalizers.Sequence([drop, *([backend.normalizer] if backend.normalizer else [])])

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, cache_dir: Path | None = None) -> Self:
        """From GGUF metadata ("tokenizer.ggml.*"). cache_dir: for what takes long to derive; None is the user's own.

        Raises ModelLoadError for an unsupported or damaged tokenizer.
        """
        vocabulary = GgufVocabulary(metadata, cache_dir)
        bos_id = vocabulary.bos_id
        prefix = (bos_id,) if bos_id is not None and vocabulary.adds_bos else ()
        return cls(vocabulary.backend(), bos_id=bos_id, eos_ids=vocabulary.end_ids, prefix=prefix)

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        """From a folder with tokenizer.json; tokenizer_config.json and special_tokens_map.json add to it.

        Raises ModelLoadError when there is no tokenizer.json, or one that is damaged or of an unsupported kind.
        """
        from vllm_nb.text.folder_tokenizer import read_folder

        return cls(**read_folder(path))

    # Text to ids

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """add_special: what the model wants at the start (BOS) comes first. parse_special: names of control tokens in
        the text, such as "<|im_end|>", become these tokens; else they are text like any other.

        Raises RequestError for half a surrogate pair, which is not text.
        """
        ids = self._encode(self._parsing if parse_special else self._plain, text)
        return [*self._prefix, *ids] if add_special else ids

    def shield(self, text: str) -> str:
        """`text` with the names of control tokens broken, invisibly, so that `encode_shielded` leaves them text."""
        return self._controls.break_up(text)

    def encode_shielded(self, text: str) -> list[int]:
        """As encode(parse_special=True), but what `shield` broke up is encoded as the text it was."""
        return self._encode(self._shielded if _BREAK in text else self._parsing, text)

    def _encode(self, view: Backend, text: str) -> list[int]:
        try:  # a batch, because that lets other threads run meanwhile: a long prompt must not stall the engine's
            return view.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except (UnicodeEncodeError, TypeError) as error:
            at = next((i for i, char in enumerate(text) if 0xD800 <= ord(char) < 0xE000), None)
            if at is None:
                raise
            message = f"the text has half a surrogate pair ({text[at]!r}) at character {at}: not valid Unicode"
            raise RequestError(message) from error

    # Ids to text

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`, as they stand within a text: the space before a first word stays. U+FFFD for what is not
        UTF-8. skip_special=False shows special tokens by name."""
        if skip_special:
            return b"".join(map(self.token_bytes, ids)).decode(errors="replace")
        named = (self._added[i].encode() if i in self.special_ids else self.token_bytes(i) for i in ids)
        return b"".join(named).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Exactly the bytes a token adds to the text: none for special tokens and ids that are no token."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._find_bytes(token_id)
        return found

    def token_text(self, token_id: int) -> str:
        """A token for the eye: special tokens by name, bytes that are not whole characters as \\xNN."""
        if token_id in self.special_ids:
            return self._added[token_id]
        return self.token_bytes(token_id).decode(errors="backslashreplace")

    def _find_bytes(self, token_id: int) -> bytes:
        if token_id in self.special_ids:
            return b""
        token = self._parsing.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        if not self._byte_level:
            byte = _BYTE_TOKEN.fullmatch(token)
            return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
        if token_id in self._added or not all(char in _BYTES for char in token):
            return token.encode()
        return bytes(map(_BYTES.__getitem__, token))


class _Controls:
    """Finds the names of control tokens in a text."""

    def __init__(self, names: Iterable[str]):
        self._names = frozenset(names)
        self._by_start: dict[str, list[str]] = {}
        for name in self._names:
            self._by_start.setdefault(name[0], []).append(name)
        self._lengths = {start: {len(name) for name in names} for start, names in self._by_start.items()}
        self._starts = re.compile("[" + "".join(map(re.escape, self._by_start)) + "]")
        self._longest = max(map(len, self._names))

    def break_up(self, text: str) -> str:
        """Puts a break after the first character of every name, also of one that the text's end cuts off: what is
        put after this text might complete it."""
        ends = [m.start() + 1 for m in self._starts.finditer(text) if self._begins(text, m.start())]
        pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
        return _BREAK.join(pieces)

    def _begins(self, text: str, at: int) -> bool:
        if any(text[at : at + length] in self._names for length in self._lengths[text[at]]):
            return True
        rest = text[at:] if len(text) - at < self._longest else None
        return rest is not None and any(name.startswith(rest) for name in self._by_start[text[at]])


def _is_control(token: AddedToken) -> bool:
    return token.special or _LOOKS_LIKE_CONTROL.fullmatch(token.content) is not None


def _view(backend: Backend, added: dict[int, AddedToken], *, special: bool) -> Backend:
    """The same model, with control tokens that are found in the text as it stands, before it is normalised.

    special: control tokens whose files do not call them special are special in this view.
    """
    view = Backend(backend.model)
    if backend.normalizer is not None:
        view.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        view.pre_tokenizer = backend.pre_tokenizer
    tokens = []
    for _, token in sorted(added.items()):
        if _is_control(token) and (token.normalized or token.special < special):
            token = AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=False,
                special=token.special or special,
            )
        tokens.append(token)
    view.add_tokens(tokens)
    return view


def _is_byte_level(backend: Backend) -> bool:
    """Whether tokens are written in GPT-2's byte alphabet; else they are sentencepiece's. Raises ModelLoadError."""
    parts = (backend.decoder, backend.pre_tokenizer, backend.normalizer)
    described = [json.dumps(json.loads(part.__getstate__())) for part in parts if part is not None]
    if any('"ByteLevel"' in text for text in described):
        return True
    if any(mark in text for text in described for mark in ('"Metaspace"', '"ByteFallback"', "\\u2581")):
        return False
    raise ModelLoadError("the tokenizer is neither byte-level (GPT-2, Llama 3, Qwen) nor of sentencepiece's kind")
