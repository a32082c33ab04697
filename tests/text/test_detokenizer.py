"""Ids to text piece by piece, against the whole at once, and against the decoders of the `tokenizers` library."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from vllm_nb.text.detokenizer import Detokenizer


def in_pieces(tokenizer, ids: list[int], sizes: list[int]) -> list[str]:
    detokenizer, pieces, at = Detokenizer(tokenizer), [], 0
    for size in [*sizes, len(ids)]:
        pieces.append(detokenizer.push(ids[at : at + size]))
        at += size
    return [*pieces, detokenizer.flush()]


sizes = st.lists(st.integers(0, 5), max_size=40)


@given(text=st.text(max_size=60), sizes=sizes)
@settings(max_examples=100, deadline=None)
def test_any_pieces_give_the_text(smollm2, gemma3, text, sizes):
    for tokenizer in (smollm2, gemma3):
        ids = tokenizer.encode(text)
        assert "".join(in_pieces(tokenizer, ids, sizes)) == tokenizer.decode(ids)


@given(data=st.data(), sizes=sizes)
@settings(max_examples=100, deadline=None)
def test_any_ids_also_those_that_are_not_utf8(smollm2, gemma3, data, sizes):
    """Models do write broken characters. Bytes alone make that likely here."""
    for tokenizer in (smollm2, gemma3):
        single = [i for i in range(600) if len(tokenizer.token_bytes(i)) == 1]
        ids = data.draw(st.lists(st.one_of(st.sampled_from(single), st.integers(0, tokenizer.vocab_size - 1))))
        expected = b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace")
        assert tokenizer.decode(ids) == expected
        assert "".join(in_pieces(tokenizer, ids, sizes)) == expected


@given(ids=st.lists(st.integers(0, 49151), max_size=30))
@settings(max_examples=100, deadline=None)
def test_as_the_librarys_byte_level_decoder(smollm2, smollm2_metadata, ids):
    tokens = smollm2_metadata["tokenizer.ggml.tokens"]
    shown = [tokens[i] for i in ids if i not in smollm2.special_ids]
    assert smollm2.decode(ids) == decoders.ByteLevel().decode(shown)


def test_as_the_librarys_sentencepiece_decoder(gemma3, gemma3_metadata, hard_texts):
    """On whole characters. Of broken ones the library makes one U+FFFD a byte, and spoils whole ones beside them."""
    tokens = gemma3_metadata["tokenizer.ggml.tokens"]
    library = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    for text in hard_texts:
        ids = gemma3.encode(text)
        assert gemma3.decode(ids) == library.decode([tokens[i] for i in ids])


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_a_character_in_several_tokens_comes_when_it_is_whole(request, name):
    tokenizer = request.getfixturevalue(name)
    text = "x\U0001fae8"
    ids = tokenizer.encode(text)
    assert len(ids) > 2
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push([i]) for i in ids]
    assert pieces[0] == "x"
    assert pieces[-1] == "\U0001fae8"
    assert set(pieces[1:-1]) <= {""}
    assert detokenizer.flush() == ""


def test_the_end_of_half_a_character(smollm2):
    detokenizer = Detokenizer(smollm2)
    assert detokenizer.push(smollm2.encode("\U0001fae8")[:1]) == ""
    assert detokenizer.flush() == "�"
