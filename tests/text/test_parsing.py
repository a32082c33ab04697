"""Golden transcripts of each family, cut in every way: the same answer, reasoning and calls must come out."""

import itertools
import json
import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers.convert_slow_tokenizer import bytes_to_unicode

from vllm_nb.text.parsing.choose import FAMILIES
from vllm_nb.text.parsing.parser import OutputParser
from vllm_nb.text.tokenizer import Tokenizer

TOOLS = {
    "weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "f": {"type": "object", "properties": {"a": {"type": "string"}, "b": {}}},
}
PARIS = ("weather", {"city": "Paris", "days": 2})
LETTERS = bytes_to_unicode()


def vocabulary(pieces: list[bytes | str]) -> tuple[Tokenizer, list[int]]:
    """A tokenizer that has each of the pieces as a token (texts as special ones), and their ids."""
    texts = ["".join(LETTERS[byte] for byte in piece) for piece in pieces if isinstance(piece, bytes)]
    known = {token: i for i, token in enumerate(dict.fromkeys(["a", *texts]))}
    backend = Backend(models.BPE(known, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(piece, special=True) for piece in pieces if isinstance(piece, str)])
    names = iter(texts)
    ids = [backend.token_to_id(piece if isinstance(piece, str) else next(names)) for piece in pieces]
    return Tokenizer(backend, bos_id=None, eos_ids=(), prefix=()), ids


def marks_of(name: str) -> list[str]:
    family = FAMILIES[name]
    marks = [*family.terminals, *(family.think or ())]
    return sorted((mark for mark in marks if re.fullmatch(r"[<\[].*[>\]]", mark)), key=len, reverse=True)


def cut(text: str, cuts: list[int], marks: list[str]) -> list[bytes | str]:
    """The output as tokens: marks whole, the rest cut at these bytes."""
    pieces: list[bytes | str] = []
    parts = re.split(f"({'|'.join(map(re.escape, marks))})", text) if marks else [text]
    for part in parts:
        if part in marks:
            pieces.append(part)
            continue
        data = part.encode()
        places = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
        pieces += [data[a:b] for a, b in itertools.pairwise(places)]
    return pieces


def parse(name, pieces, tools=TOOLS, state=None, *, ended=True):
    """(text, reasoning, calls), checked against what the stream said."""
    tokenizer, ids = vocabulary(pieces)
    parser = OutputParser(FAMILIES[name], tokenizer, tools, state)
    parsed = [*(parser.push([i]) for i in ids), parser.finish(cut=not ended)]
    streamed: dict[int, list[str]] = {}
    for delta in (delta for p in parsed for delta in p.tool_calls):
        if delta.name is not None:
            assert delta.index == len(streamed)
            assert delta.id
            streamed[delta.index] = [delta.name, ""]
        streamed[delta.index][1] += delta.arguments
    calls = [(call.name, call.arguments) for call in parser.tool_calls]
    remaining = iter(streamed.values())
    assert all(any(tuple(said) == call for said in remaining) for call in calls)
    return "".join(p.text for p in parsed), "".join(p.reasoning for p in parsed), calls


def objects(calls):
    return [(name, json.loads(arguments)) for name, arguments in calls]


ARGUMENTS = '{"city": "Paris", "days": 2}'
GOLDEN = [
    ("hermes", f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>', "", "", [PARIS]),
    (
        "hermes",
        (
            "<think>\nLet me see: é\n</think>\n\nI look. \n<tool_call>\n"
            f'{{"arguments": {ARGUMENTS}, "name": "weather"}}\n'
            '</tool_call>\n<tool_call>\n{"name":"f"}\n</tool_call>\n'
        ),
        "I look.",
        "Let me see: é",
        [PARIS, ("f", {})],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call> done', "done", "", [("f", {"a": 1})]),
    ("hermes", '[{"name": "f"}] <tool>', '[{"name": "f"}] <tool>', "", []),
    ("llama3", f'{{"name": "weather", "parameters": {ARGUMENTS}}}', "", "", [PARIS]),
    (
        "llama3",
        f'<|python_tag|>{{"name": "weather", "parameters": {ARGUMENTS}}}; {{"name": "f", "parameters": {{"b": []}}}}',
        "",
        "",
        [PARIS, ("f", {"b": []})],
    ),
    ("llama3", '{"answer": {"name": "weather"}}', '{"answer": {"name": "weather"}}', "", []),
    ("llama3", '\n{"name": "other", "parameters": {}}', '\n{"name": "other", "parameters": {}}', "", []),
    ("llama3", ' I think {"name": "f"}', ' I think {"name": "f"}', "", []),
    (
        "pythonic",
        '[weather(city="Paris", days=2), f(a=\'[(,"\', b={"x": [1, -2.5, True, null]})]',
        "",
        "",
        [PARIS, ("f", {"a": '[(,"', "b": {"x": [1, -2.5, True, None]}})],
    ),
    ("pythonic", "<|python_start|>[f()]<|python_end|>ok", "ok", "", [("f", {})]),
    ("pythonic", '[weather(city=open("x"))] no', '[weather(city=open("x"))] no', "", []),
    ("pythonic", "[1, 2] is a list", "[1, 2] is a list", "", []),
    ("mistral", f'[TOOL_CALLS][{{"name": "weather", "arguments": {ARGUMENTS}}}]', "", "", [PARIS]),
    (
        "mistral",
        f'[THINK]Hm.[/THINK]So: [TOOL_CALLS]weather[ARGS]{ARGUMENTS}[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{{"b": 1}}',
        "So:",
        "Hm.",
        [PARIS, ("f", {"b": 1})],
    ),
    ("mistral", f"[TOOL_CALLS]weather{ARGUMENTS}", "", "", [PARIS]),
    (
        "deepseek",
        (
            "<think>Hm.</think>Yes.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
            f"{ARGUMENTS}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{{}}\n```"
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
        "Yes.",
        "Hm.",
        [PARIS, ("f", {})],
    ),
    (
        "deepseek",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{ARGUMENTS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        "",
        [PARIS],
    ),
    (
        "glm",
        (
            "<think>Hm.</think>\nI look.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
            "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>f</tool_call>"
        ),
        "I look.",
        "Hm.",
        [PARIS, ("f", {})],
    ),
    (
        "qwen_coder",
        (
            "I look.\n<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n"
            "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=f>\n<parameter=a>\n  <b>\n\n2\n"
            '</parameter>\n<parameter=b>\n{"x": true}\n</parameter>\n</function>\n</tool_call>'
        ),
        "I look.",
        "",
        [PARIS, ("f", {"a": "  <b>\n\n2", "b": {"x": True}})],
    ),
    ("phi", f'<|tool_call|>[{{"name": "weather", "arguments": {ARGUMENTS}}}]<|/tool_call|>', "", "", [PARIS]),
    ("phi", f'functools[{{"name": "weather", "arguments": {ARGUMENTS}}}, {{"name": "f"}}]', "", "", [PARIS, ("f", {})]),
    (
        "gemma",
        (
            "<start_function_call>call:weather{city:<escape>Paris<escape>,days:2}<end_function_call>"
            "<start_function_call>call:f{a:<escape>}:,{<escape>,b:{x:[1,<escape>y<escape>,{}],z:null}}<end_function_call>"
        ),
        "",
        "",
        [PARIS, ("f", {"a": "}:,{", "b": {"x": [1, "y", {}], "z": None}})],
    ),
    (
        "gemma",
        '<|channel>thought\nHm.\n<channel|>Yes. <|tool_call>call:weather{city:<|"|>Paris<|"|>,days:2}<tool_call|>',
        "Yes.",
        "Hm.",
        [PARIS],
    ),
    (
        "harmony",
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
            "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
            f"{ARGUMENTS}<|call|>"
        ),
        "I look.",
        "Hm.",
        [PARIS],
    ),
    (
        "harmony",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi.<|return|>",
        "Hi.",
        "Hm.",
        [],
    ),
    ("harmony", "<|channel|>", "<|channel|>", "", []),
]
cuts = st.lists(st.integers(0, 400), max_size=30)


@pytest.mark.parametrize(("name", "output", "text", "reasoning", "calls"), GOLDEN)
def test_golden_transcripts(name, output, text, reasoning, calls):
    @settings(max_examples=25, deadline=None)
    @given(cuts)
    @example([])
    @example(list(range(400)))
    def in_any_pieces(where):
        found = parse(name, cut(output, where, marks_of(name)))
        assert (*found[:2], objects(found[2])) == (text, reasoning, calls)

    in_any_pieces()


@pytest.mark.parametrize(("name", "output", "text", "reasoning", "calls"), GOLDEN)
def test_where_the_vocabulary_has_no_such_tokens(name, output, text, reasoning, calls):
    """Marks are text then, and may be cut, too. Gemma's quotes mean nothing as text, so its calls do not count."""
    if name in ("gemma", "harmony", "deepseek", "mistral"):
        return

    @settings(max_examples=10, deadline=None)
    @given(cuts)
    @example(list(range(400)))
    def in_any_pieces(where):
        found = parse(name, cut(output, where, []))
        assert (*found[:2], objects(found[2])) == (text, reasoning, calls)

    in_any_pieces()


MARKUP = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "<think>",
            "</think>",
            '{"name": "f", ',
            '"arguments": {"a": 1}',
            "}",
            "{",
            '"',
        ),
        *("[", "]", "f(", ")", "a=1", ",", ";", " ", "\n", "x", "é", "\\", "<arg_key>", "</arg_key>", "<arg_value>"),
        *("</arg_value>", "<function=f>", "<parameter=a>", "</parameter>", "</function>", "[TOOL_CALLS]", "[ARGS]"),
        *("<|channel|>", "<|message|>", "<|end|>", "final", " to=functions.f", "<escape>", "call:f", "functools[{"),
        *("<start_function_call>", "<end_function_call>", "<|tool_call|>", "<|/tool_call|>", "<|python_tag|>", ":"),
        *(
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁calls▁end｜>",
        ),
    ]
)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("as_tokens", [True, False])
def test_any_cutting_of_any_output_gives_the_same(name, as_tokens):
    marks = marks_of(name) if as_tokens else []

    @settings(max_examples=100, deadline=None)
    @given(st.lists(MARKUP, max_size=20), cuts, st.booleans())
    def same(parts, where, ended):
        output = "".join(parts)
        whole = parse(name, cut(output, [], marks), ended=ended)
        assert parse(name, cut(output, where, marks), ended=ended) == whole
        assert parse(name, cut(output, list(range(400)), marks), ended=ended) == whole

    same()


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_lost(name):
    """Every word of an output, however broken, is in the text, the reasoning or the calls."""

    @settings(max_examples=60, deadline=None)
    @given(st.lists(MARKUP, max_size=12), st.booleans())
    @example(["<tool_call>", "<arg_key>"], False)
    def kept(parts, ended):
        words = [f"word{i}x" for i in range(len(parts))]
        output = "".join(part + word for part, word in zip(parts, words, strict=True))
        text, reasoning, calls = parse(name, cut(output, [], marks_of(name)), ended=ended)
        everything = text + reasoning + repr(calls)
        assert [word for word in words if word not in everything and name not in ("harmony", "deepseek", "gemma")] == []

    kept()


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1,}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}'),
        ("hermes", "<tool_call></tool_call>"),
        ("hermes", "Write <tool_call> to call."),
        ("hermes", "<tool_call>" + '{"name": "f", "arguments": ' + '{"a": ' * 5000 + "}" * 5001 + "</tool_call>"),
        ("glm", "<tool_call>f\n<arg_key>a</arg_key>oops</tool_call>"),
        ("qwen_coder", "<tool_call><function=f><parameter=a>1</parameter>oops</function></tool_call>"),
        ("mistral", '[TOOL_CALLS]f[ARGS]"x"'),
        ("deepseek", "<｜tool▁calls▁begin｜>oops<｜tool▁calls▁end｜>"),
        ("gemma", "<start_function_call>call:f{a:oops}<end_function_call>"),
        ("phi", '<|tool_call|>[{"nome": "f"}]<|/tool_call|>'),
        ("harmony", "<|channel|>commentary to=functions.f<|message|>oops"),
    ],
)
def test_malformed_calls_come_as_they_were_written(name, output):
    for where in ([], list(range(400))):
        text, _, calls = parse(name, cut(output, where, marks_of(name)))
        assert calls == []
        assert text == output


def test_a_good_call_after_a_malformed_one():
    output = (
        f'<tool_call>{{"nome": 1}}</tool_call><tool_call>{{"name": "weather", "arguments": {ARGUMENTS}}}</tool_call>'
    )
    for marks in ([], marks_of("hermes")):
        text, _, calls = parse("hermes", cut(output, [], marks))
        assert text == '<tool_call>{"nome": 1}</tool_call>'
        assert objects(calls) == [PARIS]


def test_arguments_stream():
    tokenizer, ids = vocabulary(cut('<tool_call>{"name": "f", "arguments": {"a": "one two"}}', list(range(99)), []))
    parser = OutputParser(FAMILIES["hermes"], tokenizer, TOOLS)
    pieces = [d.arguments for i in ids for d in parser.push([i]).tool_calls if d.arguments]
    assert "".join(pieces) == '{"a": "one two"}'
    assert len(pieces) > 10


def test_a_call_cut_off_by_the_length_stays_as_far_as_it_went():
    output = '<tool_call>{"name": "f", "arguments": {"a": "one'
    assert parse("hermes", cut(output, [], []), ended=False) == ("", "", [("f", '{"a": "one')])
    assert parse("hermes", cut(output[:20], [], []), ended=False) == (output[:20], "", [])
    output = "<tool_call>f<arg_key>b</arg_key><arg_value>1</arg_value><arg_key>ab</arg_key><arg_value>one tw"
    rests = ("", "one tw", "<arg_value>one tw", "b</arg_key><arg_value>one tw")
    arguments = ('{"b": 1, "ab": "one tw', '{"b": 1, "ab": ', '{"b": 1, "ab": ', '{"b": 1, "a')
    for rest, kept in zip(rests, arguments, strict=True):
        assert parse("glm", cut(output.removesuffix(rest), [], []), ended=False) == ("", "", [("f", kept)])


def test_text_that_spells_a_token_is_text():
    """The vocabulary has the mark, so a text that merely spells it never is one."""
    call = f'{{"name": "weather", "arguments": {ARGUMENTS}}}'
    pieces = [b"<tool", b"_call>", call.encode(), b"</tool", b"_call>", "<tool_call>", call.encode(), "</tool_call>"]
    text, _, calls = parse("hermes", pieces)
    assert text == f"<tool_call>{call}</tool_call>"
    assert objects(calls) == [PARIS]


def test_a_mark_in_a_string_does_not_end_the_call():
    output = '<tool_call>{"name": "f", "arguments": {"a": "\\"}</tool_call>{"}}</tool_call>'
    for where in ([], list(range(99))):
        text, _, calls = parse("hermes", cut(output, where, []))
        assert (text, objects(calls)) == ("", [("f", {"a": '"}</tool_call>{'})])


def test_without_tools_calls_are_text_and_reasoning_still_is_reasoning():
    call = '<tool_call>{"name": "f"}</tool_call>'
    assert parse("hermes", cut(f"<think>Hm.</think>{call}", [], []), tools={}) == (call, "Hm.", [])


def test_a_prompt_that_opened_the_reasoning():
    tokenizer, ids = vocabulary([b"\nHm", b". ", "</think>", b"\n\nYes", "<think>"])
    parser = OutputParser(FAMILIES["hermes"], tokenizer, {}, "reasoning")
    parsed = parser.push(ids[:4])
    assert (parsed.text, parsed.reasoning, parser.reasoning_tokens) == ("Yes", "Hm.", 3)


def test_linear_time():
    """A hundred thousand characters in all the ways that have made parsers quadratic."""
    hard = [
        "<" * 100_000,
        " " * 100_000,
        "<tool_call>" * 10_000,
        '<tool_call>{"name": "f", "arguments": {"a": "' + "\\" * 100_000,
    ]
    hard += ["<tool_call>[" + '{"name": "f"},' * 7_000, "<think>" * 15_000, '<tool_call>{"name": "' + "{" * 100_000]
    for output in hard:
        data = output.encode()
        pieces = [data[i : i + 4] for i in range(0, len(data), 4)]
        tokenizer, ids = vocabulary(pieces)
        started = time.perf_counter()
        parser = OutputParser(FAMILIES["hermes"], tokenizer, TOOLS)
        for token_id in ids:
            parser.push([token_id])
        parser.finish(cut=False)
        assert time.perf_counter() - started < 5, output[:40]
