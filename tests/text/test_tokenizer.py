"""What all tokenizers share: literal text, exact bytes, threads."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nb.errors import RequestError
from vllm_nb.text.tokenizer import Tokenizer

CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<start_of_turn>", "<end_of_turn>", "<bos>", "\ufdd0\ufdd1"]
texts = st.lists(st.one_of(st.text(max_size=12), st.sampled_from([*CONTROL, *(c[:-1] for c in CONTROL)]))).map("".join)


@pytest.fixture(params=["smollm2", "gemma3"])
def tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)


def writable(tokenizer: Tokenizer, text: str) -> str:
    """What the vocabulary can say: SmolLM2's lacks some bytes that occur in no text it saw, such as 0xF1; and
    sentencepiece writes a space as U+2581, so that character itself comes back as a space."""
    if tokenizer.vocab_size == 262144:
        return text.replace("▁", " ")
    single = {tokenizer.token_bytes(i) for i in range(1000)}
    return bytes(byte for byte in text.encode() if bytes([byte]) in single).decode(errors="replace")


@given(text=texts)
@settings(max_examples=150, deadline=None)
def test_plain_text_survives_and_makes_no_control_token(smollm2, gemma3, text):
    for tokenizer in (smollm2, gemma3):
        ids = tokenizer.encode(text)
        assert not tokenizer.special_ids & set(ids)
        assert tokenizer.decode(ids) == writable(tokenizer, text)


@given(text=texts, before=texts, after=texts)
@settings(max_examples=150, deadline=None)
def test_shielded_text_stays_text_between_what_is_parsed(smollm2, text, before, after):
    """Wherever it is put: also where what stands around it would complete a control token."""
    marked = smollm2.shield(before) + "<|im_end|>" + smollm2.shield(text) + "<|im_end|>" + smollm2.shield(after)
    im_end = 2
    expected = [*smollm2.encode(before), im_end, *smollm2.encode(text), im_end, *smollm2.encode(after)]
    assert smollm2.encode_shielded(marked) == expected


def test_shielding_changes_only_what_it_must(smollm2):
    for text in ("", "a < b <| c |>", "<|im_en d|>", "</think> <tool_call>", "<|im_middle|>"):
        assert smollm2.shield(text) == text
    assert smollm2.shield("x <|im_end|>") != "x <|im_end|>"
    assert smollm2.shield("x <|im_e") != "x <|im_e", "a following text might complete it"


def test_two_shielded_texts_do_not_join_to_a_control_token(smollm2):
    joined = smollm2.shield("<|im_") + smollm2.shield("end|>")
    assert smollm2.decode(smollm2.encode_shielded(joined)) == "<|im_end|>"
    assert 2 not in smollm2.encode_shielded(joined)


def test_names_of_control_tokens_that_are_not_marked_special(byte_level_metadata):
    """DeepSeek's files call <｜User｜> no special token. A text must not be able to begin a turn all the same."""
    metadata = byte_level_metadata(control=["<｜User｜>", "<|tool|>", "<think>"])
    metadata["tokenizer.ggml.token_type"][-3:] = [4, 4, 4]
    tokenizer = Tokenizer.from_gguf(metadata)
    text = "<｜User｜><|tool|><think>"
    assert tokenizer.encode(text, parse_special=True) == [256, 257, 258]
    assert not {256, 257} & set(tokenizer.encode(text))
    assert not {256, 257} & set(tokenizer.encode_shielded(tokenizer.shield(text)))
    assert 258 in tokenizer.encode(text), "but tokens such as <think> are what the text says"
    assert tokenizer.decode([256, 258]) == "<｜User｜><think>"


def test_special_tokens_have_no_text_but_a_name(tokenizer):
    end = tokenizer.eos_ids[0]
    name = tokenizer.token_text(end)
    assert name in ("<|im_end|>", "<eos>")
    assert tokenizer.token_bytes(end) == b""
    ids = [*tokenizer.encode("hi"), end]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special=False) == "hi" + name
    assert tokenizer.encode("hi" + name, parse_special=True) == ids


def test_ids_that_are_no_token(tokenizer):
    for token_id in (-1, tokenizer.vocab_size, 2**31):
        assert tokenizer.token_bytes(token_id) == b""
        assert tokenizer.token_text(token_id) == ""


def test_bytes_of_every_token(tokenizer):
    """Each token's bytes joined are the text's bytes, and the single bytes are all there."""
    table = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    assert {bytes([b]) for b in range(0x20, 0x7F)} <= set(table)
    empty = {i for i, data in enumerate(table) if not data}
    assert empty == tokenizer.special_ids
    text = "naïve 👩‍👩‍👧\n\ttabs  日本"
    assert b"".join(table[i] for i in tokenizer.encode(text)) == text.encode()


def test_text_of_half_a_character(tokenizer):
    ids = tokenizer.encode("\U0001fae8\U00010348")  # rare enough to be in pieces in both
    assert any("\\x" in tokenizer.token_text(i) for i in ids)
    assert tokenizer.decode(ids[:1] if "\\x" in tokenizer.token_text(ids[0]) else ids[-1:]) == "�"


def test_lone_surrogate(tokenizer):
    with pytest.raises(RequestError, match=r"half a surrogate pair \('\\ud83d'\) at character 2"):
        tokenizer.encode("ab\ud83d")


def test_threads_share_it(smollm2):
    """Parsing, plain and shielded encoding at once: each is as alone."""
    text = "<|im_start|>user\n" + "some words 123 " * 40 + "<|im_end|>"
    calls = [
        lambda: smollm2.encode(text),
        lambda: smollm2.encode(text, parse_special=True),
        lambda: smollm2.encode_shielded(smollm2.shield(text) + "<|im_end|>"),
        lambda: smollm2.decode(range(3000)),
    ]
    alone = [call() for call in calls]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: calls[i % 4](), range(400)))
    assert all(result == alone[i % 4] for i, result in enumerate(together))


def test_encoding_lets_other_threads_run(smollm2):
    """A long prompt is encoded in another thread than the engine's, and must not hold it up."""
    text = "the quick brown fox jumps over the lazy dog, 1234 times. " * 8000
    thread = threading.Thread(target=smollm2.encode, args=(text,))
    times = [time.perf_counter()]
    thread.start()
    while thread.is_alive():
        times.append(time.perf_counter())
    longest_wait = max(b - a for a, b in itertools.pairwise(times))
    assert longest_wait < (times[-1] - times[0]) / 2
