"""How text is cut before merging. Oracles: transformers' patterns of the same names, and cuts written out by hand."""

import pytest
from tokenizers import Regex, pre_tokenizers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from vllm_nb.text.gguf_tokenizer import GgufVocabulary
from vllm_nb.text.pretokenizers import PRE_TOKENIZERS


def cuts(metadata, name: str, text: str) -> list[tuple[int, int]]:
    backend = GgufVocabulary({**metadata, "tokenizer.ggml.pre": name}).backend()
    return [span for _, span in backend.pre_tokenizer.pre_tokenize_str(text)]


@pytest.fixture(scope="module")
def metadata(byte_level_metadata):
    return byte_level_metadata()


@pytest.mark.parametrize("name", sorted(set(PRE_TOKENIZERS) & set(GGUF_PRE_TOKENIZER_SPLITS)))
def test_as_transformers(metadata, name, hard_texts):
    theirs = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in [*hard_texts, "HTTPServer aBC é\u0301x 1234\n\n /x/\n"]:
        assert cuts(metadata, name, text) == [span for _, span in theirs.pre_tokenize_str(text)], text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-2", ["I", "'m", " at", " 1234", "  ", " x", "\n", "\n", "好", "!?"]),
        ("smollm", ["I", "'m", " at", " ", "1", "2", "3", "4", "  ", " x", "\n", "\n", "好", "!?"]),
        ("llama-bpe", ["I", "'m", " at", " ", "123", "4", "  ", " x", "\n\n", "好", "!?"]),
        ("qwen2", ["I", "'m", " at", " ", "1", "2", "3", "4", "  ", " x", "\n\n", "好", "!?"]),
        ("deepseek-v3", ["I", "'m", " at", " ", "123", "4", "  ", " x", "\n\n", "好", "!?"]),
        ("deepseek-llm", ["I", "'", "m", " at", " ", "1", "2", "3", "4", "  ", " x", "\n", "\n", "好", "!?"]),
        ("deepseek-coder", ["I", "'", "m", " at", " ", "1", "2", "3", "4", "  ", " x", "\n", "\n", "好", "!?"]),
    ],
)
def test_by_hand(metadata, name, expected):
    text = "".join(expected)
    assert text == "I'm at 1234   x\n\n好!?"
    assert [text[a:b] for a, b in cuts(metadata, name, text)] == expected


def test_every_pattern_compiles(metadata):
    for name in PRE_TOKENIZERS:
        assert cuts(metadata, name, "a b")


def test_qwen_composes_characters(byte_level_metadata):
    backend = GgufVocabulary(byte_level_metadata(pre="qwen2")).backend()
    assert backend.normalizer.normalize_str("e\u0301") == "é"
