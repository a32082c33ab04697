"""A magic's line: words, flags, and what a mistake is answered with."""

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.error import UsageError

from vllm_nb.notebook.arguments import CellOptions, parse_cell
from vllm_nb.notebook.parser import split

PLAIN = CellOptions(sampling={}, system=None, raw=False, stream=True, engine=None, output=None)


def test_nothing_given_leaves_all_to_the_model() -> None:
    assert parse_cell("", {}) == PLAIN


def test_every_flag() -> None:
    line = (
        "--temperature 0.5 --top-p .9 --top-k 40 --min-p 0.05 --max-tokens 64 --min-tokens 2 --seed=7 -n 3 "
        "--repetition-penalty 1.1 --frequency-penalty -0.5 --presence-penalty 0.25 --logprobs 0 --ignore-eos "
        "--stop END --stop 'two words' --system \"Don't ramble.\" --no-stream --engine lab -o answer"
    )
    options = parse_cell(line, {})
    assert options is not None
    assert asdict(options) == {
        "sampling": {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.05,
            "max_tokens": 64,
            "min_tokens": 2,
            "seed": 7,
            "n": 3,
            "repetition_penalty": 1.1,
            "frequency_penalty": -0.5,
            "presence_penalty": 0.25,
            "logprobs": 0,
            "ignore_eos": True,
            "stop": ["END", "two words"],
        },
        "system": "Don't ramble.",
        "raw": False,
        "stream": False,
        "engine": "lab",
        "output": "answer",
    }


def test_zero_is_a_value() -> None:
    options = parse_cell("--temperature 0 --top-k 0 --seed 0", {})
    assert options is not None
    assert options.sampling == {"temperature": 0.0, "top_k": 0, "seed": 0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--temprature 1", "%%vllm: unknown flag --temprature; did you mean '--temperature'?"),
        ("--temp=0.3", "%%vllm: unknown flag --temp; did you mean '--temperature'?"),
        ("--qqqq 3", "%%vllm: unknown flag --qqqq; %vllm -h shows them all"),
        ("Tell me a joke", "%%vllm: unexpected 'Tell'; the prompt goes on the lines below"),
        ("--temperature hot", "%%vllm: argument --temperature: invalid float value: 'hot'"),
        ("--temperature 200", "%%vllm: temperature must be a number from 0 to 100, not 200.0"),
        ("--top-p 0", "%%vllm: top_p must be a number from 1e-06 to 1, not 0.0"),
        ("--seed", "%%vllm: argument --seed: expected one argument"),
        ("-o 3x", "%%vllm: -o takes a variable name, not '3x'"),
        ("-o class", "%%vllm: -o takes a variable name, not 'class'"),
        ("--raw --system x", "%%vllm: --system needs the chat template"),
        ("--system don't", "no closing quotation in: --system don't"),
        ("--system {{ persona }}", "{{ persona }}: 'persona' is not defined in this notebook"),
    ],
)
def test_mistakes(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_cell(line, {})
    assert type(caught.value) is UsageError
    assert str(caught.value).startswith(message)


@given(st.text(), st.text())
def test_an_interpolated_value_is_one_word_whatever_it_holds(first: str, second: str) -> None:
    words = split("--system {{ first }} -o x --stop 'a{{ second }}b'", {"first": first, "second": second})
    assert words == ["--system", first, "-o", "x", "--stop", f"a{second}b"]
