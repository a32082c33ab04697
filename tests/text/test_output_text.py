"""Stop texts, against a search through the whole text; and what may be shown when."""

import threading

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vllm_nb.text.output_text import OutputText


def naive(tokenizer, ids, stops, min_tokens) -> tuple[str, str | None, int]:
    """The text, the stop text found and the tokens used, by trying every prefix of the ids."""
    before = 0
    for used in range(1, len(ids) + 2):
        whole = used > len(ids)  # at the end half a character counts as one, too
        text = tokenizer.decode(ids[:used]) if whole else complete(tokenizer, ids[:used])
        if min(used, len(ids)) >= min_tokens:
            for end in range(before + 1, len(text) + 1):
                found = [stop for stop in stops if text[:end].endswith(stop)]
                if found:
                    stop = max(found, key=len)
                    return text[: end - len(stop)], stop, min(used, len(ids))
        before = len(text)
    return text, None, len(ids)


def complete(tokenizer, ids) -> str:
    """The text without a character that is unfinished at its end."""
    text = tokenizer.decode(ids)
    data = b"".join(map(tokenizer.token_bytes, ids))
    for cut in range(1, 4):
        tail = data[len(data) - cut :]
        if tail and (tail[0] & 0xC0) == 0xC0 and not decodes(tail) and decodes_later(tail):
            return data[: len(data) - cut].decode(errors="replace")
    return text


def decodes(data: bytes) -> bool:
    return "�" not in data.decode(errors="replace")


def decodes_later(data: bytes) -> bool:
    later = (data + bytes(rest) for rest in ([0x80], [0x90], [0xA0], [0x80, 0x80], [0x90, 0x80], [0xA0, 0x80],
                                             [0x80, 0x80, 0x80], [0x90, 0x80, 0x80]))  # fmt: skip
    return any(decodes(candidate) for candidate in later)


def run(tokenizer, ids, sizes, stops, min_tokens=0) -> tuple[str, str | None, int, list[str]]:
    output, shown, at = OutputText(tokenizer, tuple(stops), min_tokens), [], 0
    for size in [*sizes, len(ids)]:
        shown.append(output.push(ids[at : at + size]))
        at += size
    shown.append(output.finish())
    return "".join(shown), output.stopped, output.tokens_used, shown


stop_lists = st.lists(st.text("ab é", min_size=1, max_size=4), max_size=4)
sizes = st.lists(st.integers(0, 4), max_size=30)


@given(text=st.text("ab é\U0001fae8", max_size=40), stops=stop_lists, sizes=sizes, min_tokens=st.integers(0, 12))
@settings(max_examples=300, deadline=None)
@example("abab", ["aba", "b"], [], 0)
@example("aab", ["ab", "aab", "b"], [], 0)
def test_as_a_search_through_the_whole_text(smollm2, text, stops, sizes, min_tokens):
    ids = smollm2.encode(text)
    assert run(smollm2, ids, sizes, stops, min_tokens)[:3] == naive(smollm2, ids, stops, min_tokens)


@given(data=st.data(), stops=st.lists(st.text("a�é", min_size=1, max_size=3), max_size=3), sizes=sizes)
@settings(max_examples=150, deadline=None)
def test_broken_characters(smollm2, data, stops, sizes):
    """U+FFFD is a character like any other, also the one that half a character becomes at the end."""
    single = [i for i in range(600) if len(smollm2.token_bytes(i)) == 1]
    ids = data.draw(st.lists(st.sampled_from([*single, *smollm2.encode("aé\U0001fae8")]), max_size=20))
    assert run(smollm2, ids, sizes, stops)[:3] == naive(smollm2, ids, stops, 0)


@given(text=st.text("ab ", max_size=40), stops=stop_lists, sizes=sizes)
@settings(max_examples=150, deadline=None)
def test_shows_all_that_can_be_shown(smollm2, text, stops, sizes):
    """After each push only the longest end that begins a stop text is held back."""
    ids = smollm2.encode(text)
    output, shown, at = OutputText(smollm2, tuple(stops)), "", 0
    for size in sizes:
        shown += output.push(ids[at : at + size])
        at = min(at + size, len(ids))
        if output.stopped:
            break
        so_far = smollm2.decode(ids[:at])
        begun = [n for stop in stops for n in range(1, len(stop)) if so_far.endswith(stop[:n])]
        assert shown == so_far[: len(so_far) - max(begun, default=0)]


def test_a_stop_text_across_tokens(smollm2):
    ids = smollm2.encode("Hello world. STOP here")
    text, stopped, used, shown = run(smollm2, ids, [1] * len(ids), ["d. ST"])
    assert (text, stopped) == ("Hello worl", "d. ST")
    assert smollm2.decode(ids[:used]).startswith("Hello world. ST")
    assert not smollm2.decode(ids[: used - 1]).startswith("Hello world. ST")
    assert shown[:3] == ["Hello", " worl", ""]


def test_tokens_after_the_stop_text_are_ignored(smollm2):
    output = OutputText(smollm2, ("b",))
    ids = smollm2.encode("a b c d")
    assert output.push(ids) == "a "
    used = output.tokens_used
    assert used < len(ids)
    assert output.push(ids) == output.finish() == ""
    assert (output.stopped, output.tokens_used) == ("b", used)


def test_half_a_stop_text_comes_at_the_end(smollm2):
    output = OutputText(smollm2, ("world!",))
    assert output.push(smollm2.encode("hello world")) == "hello "
    assert output.finish() == "world"
    assert output.stopped is None


def test_half_a_character_at_the_end_can_complete_a_stop_text(smollm2):
    output = OutputText(smollm2, ("x�",))
    assert output.push(smollm2.encode("abx") + smollm2.encode("\U0001fae8")[:1]) == "ab"
    assert (output.finish(), output.stopped) == ("", "x�")


def test_a_stop_text_before_min_tokens_is_text_and_is_shown_at_once(smollm2):
    ids = smollm2.encode(" one two one two")
    assert len(ids) == 4
    output = OutputText(smollm2, (" two",), min_tokens=3)
    assert [output.push([i]) for i in ids] == [" one", " two", " one", ""]
    assert (output.stopped, output.tokens_used) == (" two", 4)


def test_a_stop_text_that_begins_before_min_tokens_and_ends_after(smollm2):
    ids = smollm2.encode(" one two one two")
    output = OutputText(smollm2, ("two one",), min_tokens=3)
    assert output.push(ids) == " one "
    assert output.stopped == "two one"


def test_without_stop_texts_a_push_is_one_piece(smollm2):
    output = OutputText(smollm2)
    ids = smollm2.encode("some text 😀")
    assert output.push(ids[:-1]) + output.push(ids[-1:]) + output.finish() == "some text 😀"
    assert output.tokens_used == len(ids)


@pytest.mark.parametrize("stop", ["a" * 1024, "ab" * 512])
def test_long_stop_texts_take_linear_time(smollm2, stop):
    """Near misses all along: a search anew at each place would take a thousand times as long."""
    ids = smollm2.encode(stop[:-1] * 60)
    assert run(smollm2, ids, [], [stop + "x"])[1] is None


def test_threads_share_stop_texts(smollm2):
    ids = smollm2.encode("one two three four five six seven")
    results: list[tuple] = []

    def work() -> None:
        for i in range(200):
            stops = (" five", f"never {i % 7}")
            results.append(run(smollm2, ids, [1] * 4, stops)[:3])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) == {("one two three four", " five", 5)}
