"""Tokenizers built from GGUF metadata. Oracle: transformers' tokenizers of the same files."""

import hashlib
import heapq
import os
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from vllm_nb.errors import ModelLoadError
from vllm_nb.text.gguf_tokenizer import GgufVocabulary
from vllm_nb.text.tokenizer import Tokenizer

# Without what transformers gets wrong, see below: long runs of spaces, and white space before a digit.
SOURCE = re.sub(r" {32,}|\s{2,}(?=\d)", " ", Path(heapq.__file__).read_text(encoding="utf-8"))


def differing(ours: Tokenizer, theirs, texts: list[str]) -> list[str]:
    """The beginnings of the texts that are encoded differently."""
    wrong = []
    for text in texts:
        same = (
            ours.encode(text) == theirs.encode(text, add_special_tokens=False, split_special_tokens=True),
            ours.encode(text, parse_special=True) == theirs.encode(text, add_special_tokens=False),
            ours.encode(text, add_special=True, parse_special=True) == theirs.encode(text),
        )
        wrong += [] if all(same) else [text[:60]]
    return wrong


def test_smollm2_as_transformers(smollm2, smollm2_path, hard_texts, quick_gguf):
    with quick_gguf():
        theirs = AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)
    assert differing(smollm2, theirs, [*hard_texts, SOURCE]) == []
    assert (smollm2.vocab_size, smollm2.bos_id, smollm2.eos_ids) == (49152, 1, (2,))
    assert not smollm2.adds_bos


def test_smollm2_cuts_every_digit_off(smollm2):
    """As "smollm" does in llama.cpp: digits first, then GPT-2's pattern on what is between. transformers knows no
    "smollm" and applies GPT-2's alone, which joins a space with what follows: [3 spaces, " ", "2"], ["4", "2", " Â"]"""
    assert [smollm2.token_text(i) for i in smollm2.encode("a    2")] == ["a", "    ", "2"]
    assert [smollm2.token_text(i) for i in smollm2.encode("42 ½")] == ["4", "2", " ", "½"]


def test_gemma3_as_transformers(gemma3, gemma3_path, hard_texts, quick_gguf):
    with quick_gguf():
        theirs = AutoTokenizer.from_pretrained(gemma3_path.parent, gguf_file=gemma3_path.name)
    assert differing(gemma3, theirs, [*hard_texts, SOURCE]) == []
    assert (gemma3.vocab_size, gemma3.bos_id, gemma3.eos_ids) == (262144, 2, (1,))
    assert gemma3.adds_bos


def test_gemma3_takes_the_longest_runs_of_spaces(gemma3):
    """As sentencepiece does with tokens a user defined, and Gemma's own tokenizer.json: 31, then the rest. From a GGUF,
    transformers turns these tokens into merges of its own making, and gives 16 + 16 + 18."""
    assert [len(gemma3.token_bytes(i)) for i in gemma3.encode(" " * 50 + "x")] == [31, 19, 1]


@pytest.mark.parametrize("as_type", [list, tuple, np.array], ids=["list", "tuple", "array"])
def test_arrays_of_any_kind(spm_metadata, cache_dir, as_type):
    metadata = spm_metadata(["ab", "a", "b", "▁"])
    arrays = {key: as_type(value) if isinstance(value, list) else value for key, value in metadata.items()}
    assert Tokenizer.from_gguf(arrays, cache_dir=cache_dir).encode("ab") == [262, 259]


def test_space_prefix_and_bos(spm_metadata, cache_dir):
    pieces = ["▁a", "a", "▁"]
    plain = Tokenizer.from_gguf(spm_metadata(pieces, add_space_prefix=False, add_bos_token=False), cache_dir=cache_dir)
    assert plain.encode("a", add_special=True) == [260]
    # What files leave out is as llama.cpp has it for this kind: a space before every text, and BOS.
    usual = Tokenizer.from_gguf(spm_metadata(pieces), cache_dir=cache_dir)
    assert usual.encode("a", add_special=True) == [1, 259]
    assert usual.encode("a</s>a", parse_special=True) == [259, 2, 259]


def test_control_and_byte_tokens_are_not_made_from_text(spm_metadata, cache_dir):
    """Were </s> joined up from its letters, plain text could end an answer."""
    pieces = ["</s", "</", "<", "/", "s", ">", "0", "x", "A", "<0", "<0x", "A>", "0A>"]
    tokenizer = Tokenizer.from_gguf(spm_metadata(pieces, add_space_prefix=False), cache_dir=cache_dir)
    assert [tokenizer.token_text(i) for i in tokenizer.encode("</s>")] == ["</s", ">"]
    assert [tokenizer.token_text(i) for i in tokenizer.encode("<0x0A>")] == ["<0x", "0A>"]
    assert tokenizer.token_bytes(3 + 10) == b"\n"


def test_end_ids(spm_metadata, cache_dir):
    metadata = spm_metadata(["<eot>", "<eom>"], eot_token_id=259, eom_token_id=260)
    tokenizer = Tokenizer.from_gguf(metadata, cache_dir=cache_dir)
    assert tokenizer.eos_ids == (2, 259, 260)
    assert tokenizer.special_ids >= {1, 2, 259, 260}, "declared ends are control tokens, whatever their kind says"
    assert tokenizer.token_bytes(259) == b""


def test_no_bos_in_the_vocabulary(byte_level_metadata):
    tokenizer = Tokenizer.from_gguf(byte_level_metadata(add_bos_token=True, bos_token_id=2**32 - 1))
    assert tokenizer.bos_id is None
    assert not tokenizer.adds_bos


def test_empty_token(spm_metadata, cache_dir):
    tokenizer = Tokenizer.from_gguf(spm_metadata(["", "a"], add_space_prefix=False), cache_dir=cache_dir)
    assert tokenizer.encode("a") == [260]
    assert tokenizer.vocab_size == 261


# The cache of derived merges


def load(metadata, folder: Path) -> list[int]:
    return Tokenizer.from_gguf(metadata, cache_dir=folder).encode("abab")


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_merges_are_cached(spm_metadata, tmp_path):
    metadata = spm_metadata(["ab", "abab", "a", "b", "▁"])
    ids = load(metadata, tmp_path / "new")
    file = only_file(tmp_path / "new")
    before = file.stat()
    assert load(metadata, tmp_path / "new") == ids
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    pairs = np.frombuffer(file.read_bytes()[32:], np.int32).reshape(-1, 2)
    assert pairs.tolist() == [[261, 262], [259, 259]]
    body = np.array([[261, 262]], np.int32).tobytes()
    file.write_bytes(hashlib.sha256(body).digest() + body)
    assert load(metadata, tmp_path / "new") == [263, 259, 259], "what the cache says is used"


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-3], lambda b: b[:40] + b"!" + b[41:], lambda b: b + b])
def test_a_damaged_cache_is_made_anew(spm_metadata, tmp_path, damage):
    metadata = spm_metadata(["ab", "abab", "a", "b", "▁"])
    ids = load(metadata, tmp_path)
    file = only_file(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert load(metadata, tmp_path) == ids
    assert only_file(tmp_path).read_bytes() == whole


def test_another_vocabulary_has_a_cache_of_its_own(spm_metadata, tmp_path):
    load(spm_metadata(["ab", "a", "b", "▁"]), tmp_path)
    load(spm_metadata(["a", "ab", "b", "▁"]), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_no_cache_folder_can_be_made(spm_metadata, tmp_path):
    (tmp_path / "file").write_text("")
    assert load(spm_metadata(["ab", "a", "b", "▁"]), tmp_path / "file" / "folder") == [262, 259, 259]


def test_the_users_own_cache_is_the_default(spm_metadata, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    Tokenizer.from_gguf(spm_metadata(["ab", "a", "b", "▁"]))
    assert [name for _, _, names in os.walk(tmp_path) for name in names if name.endswith(".merges")]


# What cannot be loaded


def changed(metadata, **fields):
    return {**metadata, **{f"tokenizer.ggml.{name}": value for name, value in fields.items()}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "bert"}, "of kind 'bert'.*supported are 'gpt2'.*'llama'"),
        ({"model": None}, "of kind None"),
        ({"tokens": []}, "no vocabulary"),
        ({"tokens": ["a", 1]}, "must be texts"),
        ({"tokens": ["a"]}, r"token_type must have 1 entries, one a token, not 262"),
        ({"token_type": [1, 2]}, "must have 262 entries, one a token, not 2"),
        ({"token_type": ["x"] * 262}, "token_type must hold numbers"),
        ({"scores": [0.0]}, "scores must have 262 entries, one a token, not 1"),
        ({"scores": None}, "scores must have 262 entries, one a token, not none"),
    ],
)
def test_damaged_sentencepiece_metadata(spm_metadata, cache_dir, fields, message):
    metadata = changed(spm_metadata(["a", "b", "▁"]), **fields)
    with pytest.raises(ModelLoadError, match=message):
        Tokenizer.from_gguf(metadata, cache_dir=cache_dir)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pre": "nonsense"}, "'nonsense'.*is not known; known are .*llama-bpe.*qwen2.*smollm"),
        ({"merges": None}, "lacks its merges"),
        ({"merges": ["a b", "ab"]}, "a merge of the tokenizer is 'ab', not two parts"),
        ({"merges": ["a b c"]}, "a merge of the tokenizer is 'a b c', not two parts"),
        ({"merges": ["a ☃"]}, "merges do not fit its vocabulary"),
    ],
)
def test_damaged_byte_level_metadata(byte_level_metadata, fields, message):
    with pytest.raises(ModelLoadError, match=message):
        Tokenizer.from_gguf(changed(byte_level_metadata(["a b"]), **fields))


def test_a_token_twice(byte_level_metadata):
    with pytest.raises(ModelLoadError, match="has the token '<x>' twice"):
        Tokenizer.from_gguf(byte_level_metadata(control=["<x>", "<y>", "<x>"]))


def test_defaults_of_the_pre_tokenizer(byte_level_metadata):
    metadata = byte_level_metadata(["a b"], ["<bos>"], pre="llama-bpe", bos_token_id=257)
    assert Tokenizer.from_gguf(metadata).adds_bos, "llama.cpp adds BOS for llama-bpe where the file does not say"
    assert not Tokenizer.from_gguf(metadata | {"tokenizer.ggml.add_bos_token": False}).adds_bos
    del metadata["tokenizer.ggml.pre"]
    assert GgufVocabulary(metadata).pre.gpt2
