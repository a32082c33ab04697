"""A tokenizer from what a GGUF file says of it: vocabulary, kinds, scores or merges, and the pre-tokenizer's name.

Keys and meanings: the GGUF specification and llama.cpp's llama-vocab.cpp.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from vllm_nb.errors import ModelLoadError
from vllm_nb.text.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from vllm_nb.text.spm_merges import spm_merges

_PREFIX = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # kinds of tokens; 6 stands for one byte
_END_IDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_CACHE_VERSION = b"vllm_nb merges 1"


class GgufVocabulary:
    """The metadata's tokenizer, checked. `backend()` builds it; bos_id, end_ids and adds_bos say the rest.

    Raises ModelLoadError for a kind of tokenizer that is not supported and for metadata that does not fit together.
    """

    def __init__(self, metadata: Mapping[str, Any], cache_dir: Path | None = None):
        import platformdirs  # a GPU machine with safetensors need not have it

        self._metadata = metadata
        self._cache_dir = cache_dir or Path(platformdirs.user_cache_dir("vllm_nb")) / "tokenizers"
        self.kind = metadata.get(_PREFIX + "model")
        if self.kind not in ("gpt2", "llama"):
            raise ModelLoadError(
                f"the model's tokenizer is of kind {self.kind!r} (tokenizer.ggml.model); "
                "supported are 'gpt2' (byte-level BPE) and 'llama' (sentencepiece BPE)"
            )
        self.pre = self._pre_tokenizer() if self.kind == "gpt2" else PreTokenizer(adds_bos=True)
        self.tokens = self._tokens()
        self.bos_id = self._id("bos_token_id")
        self.end_ids = tuple(dict.fromkeys(i for name in _END_IDS if (i := self._id(name)) is not None))
        self.adds_bos = bool(metadata.get(_PREFIX + "add_bos_token", self.pre.adds_bos)) and self.bos_id is not None
        self._space_prefix = bool(metadata.get(_PREFIX + "add_space_prefix", True))
        kinds = self._array("token_type", np.int32) if _PREFIX + "token_type" in metadata else None
        self._kinds = np.full(len(self.tokens), _NORMAL) if kinds is None else kinds
        self._kinds[[i for i in (self.bos_id, *self.end_ids) if i is not None]] = _CONTROL  # some files say otherwise

    def backend(self) -> Tokenizer:
        backend = Tokenizer(self._byte_level_model() if self.kind == "gpt2" else self._sentencepiece_model())
        if self.kind == "gpt2":
            if self.pre.nfc:
                backend.normalizer = normalizers.NFC()
            splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.pre.splits]
            last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pre.gpt2)
            backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, last])
        else:
            spaces = normalizers.Replace(" ", "▁")
            prepend = [normalizers.Prepend("▁")] if self._space_prefix else []
            backend.normalizer = normalizers.Sequence([*prepend, spaces])
        backend.add_tokens(self._added_tokens())
        return backend

    def _added_tokens(self) -> list[AddedToken]:
        """The tokens found in the text before anything is cut or merged: control tokens, and those a user defined."""
        found = np.flatnonzero(np.isin(self._kinds, (_UNKNOWN, _CONTROL, _USER_DEFINED)))
        return [
            AddedToken(
                self.tokens[i],
                # Gemma's runs of spaces: sentencepiece looks for them once spaces have become U+2581.
                normalized=self.kind == "llama" and not self._space_prefix and self.tokens[i].isspace(),
                special=bool(self._kinds[i] != _USER_DEFINED),
            )
            for i in found
        ]

    # Models

    def _byte_level_model(self) -> models.BPE:
        merges = self._metadata.get(_PREFIX + "merges")
        if merges is None:
            raise ModelLoadError("the tokenizer lacks its merges (tokenizer.ggml.merges); convert the model again")
        rules = []
        for rule in merges:
            left, space, right = str(rule).partition(" ")
            if not space or " " in right:
                raise ModelLoadError(f"a merge of the tokenizer is {rule!r}, not two parts and a space")
            rules.append((left, right))
        return self._bpe(rules, ignore_merges=self.pre.ignore_merges)

    def _sentencepiece_model(self) -> models.BPE:
        unknown = self._id("unknown_token_id")
        left, right = np.array(self.tokens, object)[self._cached_merges().T].tolist()
        rules = list(zip(left, right, strict=True))
        return self._bpe(
            rules, byte_fallback=True, fuse_unk=True, unk_token=None if unknown is None else self.tokens[unknown]
        )

    def _bpe(self, rules: list[tuple[str, str]], **options: Any) -> models.BPE:
        vocabulary = dict(zip(self.tokens, range(len(self.tokens)), strict=True))
        if len(vocabulary) < len(self.tokens):
            twice = next(token for i, token in enumerate(self.tokens) if vocabulary[token] != i)
            raise ModelLoadError(f"the tokenizer's vocabulary has the token {twice!r} twice")
        try:
            return models.BPE(vocabulary, rules, **options)
        except Exception as error:  # the library raises nothing narrower
            raise ModelLoadError(f"the tokenizer's merges do not fit its vocabulary: {error}") from error

    # Merges of a sentencepiece vocabulary, cached: deriving them takes a second for 262,144 pieces

    def _cached_merges(self) -> np.ndarray:
        """int32 [num_rules, 2]: token ids."""
        scores = self._array("scores", np.float32)
        # Control, byte and user-defined tokens are never joined up from text.
        ids = np.flatnonzero(np.isin(self._kinds, (_NORMAL, _UNUSED)))
        pieces = [self.tokens[i] for i in ids]
        lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        digest = hashlib.sha256(_CACHE_VERSION)
        for part in (ids, lengths, scores[ids], np.frombuffer("".join(pieces).encode(), np.uint8)):
            digest.update(part.tobytes())
        path = self._cache_dir / f"{digest.hexdigest()[:32]}.merges"
        merges = _read_cache(path)
        if merges is None:
            merges = ids.astype(np.int32)[spm_merges(pieces, scores[ids])]
            _write_cache(path, merges)
        return merges

    # Metadata

    def _pre_tokenizer(self) -> PreTokenizer:
        name = self._metadata.get(_PREFIX + "pre", "default")
        if name not in PRE_TOKENIZERS:
            raise ModelLoadError(
                f"the model's pre-tokenizer {name!r} (tokenizer.ggml.pre) is not known; known are "
                + ", ".join(sorted(PRE_TOKENIZERS))
            )
        return PRE_TOKENIZERS[name]

    def _tokens(self) -> list[str]:
        tokens = self._metadata.get(_PREFIX + "tokens")
        if tokens is None or not len(tokens):
            raise ModelLoadError("the model file has no vocabulary (tokenizer.ggml.tokens); convert the model again")
        texts = list(tokens)
        if not all(isinstance(text, str) for text in texts):
            raise ModelLoadError("the tokenizer's vocabulary (tokenizer.ggml.tokens) must be texts")
        return [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]  # the name llama.cpp gives, too

    def _array(self, name: str, dtype: type) -> np.ndarray:
        values: Sequence[Any] | None = self._metadata.get(_PREFIX + name)
        if values is None or len(values) != len(self.tokens):
            had = "none" if values is None else f"{len(values):,}"
            raise ModelLoadError(
                f"tokenizer.ggml.{name} must have {len(self.tokens):,} entries, one a token, not {had}"
            )
        try:
            return np.array(values, dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise ModelLoadError(f"tokenizer.ggml.{name} must hold numbers: {error}") from error

    def _id(self, name: str) -> int | None:
        """None also for an id outside the vocabulary, which is how some files say "none"."""
        value = self._metadata.get(_PREFIX + name)
        return value if isinstance(value, int) and 0 <= value < len(self.tokens) else None


def _read_cache(path: Path) -> np.ndarray | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, body = content[:32], content[32:]
    if hashlib.sha256(body).digest() != digest:
        return None
    return np.frombuffer(body, np.int32).reshape(-1, 2)


def _write_cache(path: Path, merges: np.ndarray) -> None:
    """Whole or not at all. Where the folder cannot be written, the next load takes longer, that is all."""
    body = merges.tobytes()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / "part"
            part.write_bytes(hashlib.sha256(body).digest() + body)
            part.replace(path)
