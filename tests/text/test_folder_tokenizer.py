"""Tokenizers from Hugging Face folders. Oracle: transformers' AutoTokenizer on the same folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from vllm_nb.errors import ModelLoadError
from vllm_nb.text.tokenizer import Tokenizer

SPECIAL = ["<|bos|>", "<|end|>"]  # ids 258, 259
CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|end|>"}


def byte_level() -> Backend:
    letters = [*bytes_to_unicode().values(), "he", "hel"]
    vocabulary = {token: i for i, token in enumerate(letters)}
    backend = Backend(models.BPE(vocabulary, [("h", "e"), ("he", "l")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL])
    return backend


def sentencepiece() -> Backend:
    pieces = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "e", "▁h", "▁he"]
    vocabulary = {token: i for i, token in enumerate(pieces)}
    merges = [("▁", "h"), ("▁h", "e")]
    backend = Backend(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL])
    return backend


def with_bos(backend: Backend) -> Backend:
    bos = ("<|bos|>", backend.token_to_id("<|bos|>"))
    backend.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[bos])
    return backend


@pytest.fixture
def folder(tmp_path):
    def write(backend: Backend, config: dict[str, Any] | None = CONFIG, **files: Any) -> Path:
        backend.save(str(tmp_path / "tokenizer.json"))
        if config is not None:
            files["tokenizer_config"] = config
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write


@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("post_processor", [False, True])
def test_as_transformers(folder, kind, add_bos, post_processor, hard_texts):
    """Whether BOS comes first is for the post-processor alone to say."""
    config = CONFIG if add_bos is None else CONFIG | {"add_bos_token": add_bos}
    path = folder(with_bos(kind()) if post_processor else kind(), config)
    ours, theirs = Tokenizer.from_folder(path), AutoTokenizer.from_pretrained(path)
    for text in [*hard_texts, "hel<|end|> he"]:
        assert ours.encode(text, add_special=True, parse_special=True) == theirs.encode(text), text
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False, split_special_tokens=True), text
    assert (ours.bos_id, ours.eos_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))
    assert ours.adds_bos == (theirs.encode("h")[0] == theirs.bos_token_id)
    assert ours.special_ids == set(theirs.all_special_ids) - {theirs.unk_token_id}
    assert ours.vocab_size == len(theirs)


def test_text_of_a_continuation_keeps_its_first_space(folder):
    """Unlike the decoder in tokenizer.json, which strips it: an answer's first word may need it."""
    tokenizer = Tokenizer.from_folder(folder(sentencepiece()))
    ids = tokenizer.encode("he é")
    assert tokenizer.decode(ids) == " he é"
    assert tokenizer.token_bytes(ids[0]) == b" he"


def test_bos_and_eos_as_dictionaries_and_from_the_map(folder):
    tokens = {"bos_token": {"content": "<|bos|>", "lstrip": False}, "eos_token": "<|end|>"}
    tokenizer = Tokenizer.from_folder(folder(byte_level(), None, special_tokens_map=tokens))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (258, (259,))


def test_tokenizer_json_alone(folder):
    tokenizer = Tokenizer.from_folder(folder(byte_level(), None))
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.adds_bos) == (None, (), False)


def test_tokens_that_the_configuration_adds(folder):
    added = {
        "258": {"content": "<|bos|>", "special": True},
        "260": {"content": "<|tool|>", "special": True, "normalized": False},
        "261": {"content": "<think>", "special": False, "normalized": False},
    }
    path = folder(byte_level(), CONFIG | {"added_tokens_decoder": added})
    ours, theirs = Tokenizer.from_folder(path), AutoTokenizer.from_pretrained(path)
    text = "he<|tool|><think>"
    assert ours.encode(text, parse_special=True) == theirs.encode(text) == [256, 260, 261]
    assert ours.encode("<|tool|>") != [260]
    assert ours.special_ids == {258, 259, 260}
    assert ours.decode([256, 260, 261]) == "he<think>"


def test_bos_that_tokenizer_json_does_not_call_special(folder):
    backend = byte_level()
    backend.add_tokens([AddedToken("<s>", normalized=False)])
    tokenizer = Tokenizer.from_folder(folder(backend, CONFIG | {"bos_token": "<s>"}))
    assert tokenizer.bos_id in tokenizer.special_ids
    assert tokenizer.bos_id not in tokenizer.encode("<s>")


def test_settings_for_training_are_dropped(folder):
    backend = byte_level()
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    assert Tokenizer.from_folder(folder(backend)).encode("xyz") == byte_level().encode("xyz").ids


def test_no_tokenizer(tmp_path):
    with pytest.raises(ModelLoadError, match=r"has no tokenizer.json. Save one with transformers"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(
        ModelLoadError, match=r"no tokenizer.json, only tokenizer.model, which this engine does not read"
    ):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", '{"model": 1}', "[1, 2"])
def test_damaged_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_damaged_configuration(folder):
    path = folder(byte_level())
    for content, message in (("{", "is not valid JSON"), ("[]", "must hold a JSON object"), ("\xff", "not valid JSON")):
        (path / "tokenizer_config.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(ModelLoadError, match=message):
            Tokenizer.from_folder(path)


@pytest.mark.parametrize("listed", [{"x": {"content": "a"}}, {"300": {}}, {"300": "a"}, [1], {"300": {"content": 3}}])
def test_damaged_list_of_added_tokens(folder, listed):
    path = folder(byte_level(), CONFIG | {"added_tokens_decoder": listed})
    with pytest.raises(ModelLoadError, match="added_tokens_decoder"):
        Tokenizer.from_folder(path)


def test_files_that_do_not_belong_together(folder):
    path = folder(byte_level(), CONFIG | {"added_tokens_decoder": {"300": {"content": "<|x|>", "special": True}}})
    with pytest.raises(ModelLoadError, match=r"'<\|x\|>' has id 300.*gets id 260.*do not belong together"):
        Tokenizer.from_folder(path)


def test_a_kind_that_no_language_model_here_uses(tmp_path):
    Backend(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelLoadError, match=r"neither byte-level .* nor of sentencepiece's kind"):
        Tokenizer.from_folder(tmp_path)
