"""A magic's line: words, flags, and what a mistake is answered with."""

from dataclasses import asdict, dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.error import UsageError

from vllm_nb.notebook.arguments import CellOptions, cell_parser, parse_cell
from vllm_nb.notebook.parser import split
from vllm_nb.sampling import SamplingParams

NOTHING = {
    "params": {},
    "system": None,
    "chat": None,
    "images": (),
    "tools": (),
    "confirm": True,
    "raw": False,
    "stream": True,
    "panels": (),
    "engine": None,
    "output": None,
    "over": None,
    "into": None,
    "concurrency": 64,
    "resume": False,
}


@dataclass
class City:
    name: str


def depth(of: str) -> float:
    return 1.0


NAMESPACE = {"City": City, "depth": depth, "number": 5, "picture": object()}


def test_every_parameter_of_a_request_has_a_flag() -> None:
    flags = cell_parser().format_help()
    spelled = {"structured_outputs": "--schema", "n": "-n"}
    for name in SamplingParams.__dataclass_fields__:
        assert spelled.get(name, f"--{name.replace('_', '-')}") in flags


def test_what_names_lead_to(tmp_path) -> None:
    (tmp_path / "city.json").write_text('{"type": "object"}')
    for schema, text in [("City", '{"name": "Ulm"}'), ("list[City]", "[]"), (f"{tmp_path}/city.json", "{}")]:
        options = parse_cell(f"--schema {schema} -n 2", NAMESPACE)
        assert options.shaped
        options.params["schema"].value(text)
    options = parse_cell("--choice 'yes, no'", {})
    assert options.params["schema"].outputs.choice == ("yes", "no")
    assert parse_cell("--regex [0-9]+", {}).params["schema"].outputs.regex == "[0-9]+"
    options = parse_cell("--tools depth --image picture --image sea.png", NAMESPACE)
    assert (options.tools, options.images) == ((depth,), (NAMESPACE["picture"], "sea.png"))


def test_defaults_give_way_to_flags() -> None:
    defaults = {"temperature": 0.5, "system": "Be brief.", "no_stream": True, "yes": True, "seed": 3}
    options = parse_cell("--temperature 0", {}, defaults)
    assert options.params == {"temperature": 0.0, "seed": 3}
    assert (options.system, options.stream, options.confirm) == ("Be brief.", False, False)
    assert parse_cell("--raw", {}, defaults).system is None


def test_nothing_given_leaves_all_to_the_model() -> None:
    assert parse_cell("", {}) == CellOptions(**NOTHING)


def test_every_flag() -> None:
    line = (
        "--temperature 0.5 --top-p .9 --top-k 40 --min-p 0.05 --max-tokens 64 --min-tokens 2 --seed=7 "
        "--repetition-penalty 1.1 --frequency-penalty -0.5 --presence-penalty 0.25 --logprobs 0 --ignore-eos "
        "--stop END --stop 'two words' --stop-token-ids 5,6 --logit-bias 7:-1.5,8:2 --prompt-logprobs 1 --thinking off "
        '--reasoning-effort low --system "Don\'t ramble." --chat talk --image a.png --image b.png --no-stream --yes '
        "--engine lab -o answer"
    )
    options = parse_cell(line, {})
    assert options is not None
    assert asdict(options) == NOTHING | {
        "params": {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.05,
            "max_tokens": 64,
            "min_tokens": 2,
            "seed": 7,
            "repetition_penalty": 1.1,
            "frequency_penalty": -0.5,
            "presence_penalty": 0.25,
            "logprobs": 0,
            "ignore_eos": True,
            "stop": ["END", "two words"],
            "stop_token_ids": [5, 6],
            "logit_bias": {7: -1.5, 8: 2.0},
            "prompt_logprobs": 1,
            "enable_thinking": False,
            "reasoning_effort": "low",
        },
        "system": "Don't ramble.",
        "chat": "talk",
        "images": ("a.png", "b.png"),
        "confirm": False,
        "stream": False,
        "engine": "lab",
        "output": "answer",
    }


def test_zero_is_a_value() -> None:
    options = parse_cell("--temperature 0 --top-k 0 --seed 0", {})
    assert options is not None
    assert options.params == {"temperature": 0.0, "top_k": 0, "seed": 0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--temprature 1", "%%vllm: unknown flag --temprature; did you mean '--temperature'?"),
        ("--temp=0.3", "%%vllm: unknown flag --temp; did you mean '--temperature'?"),
        (
            "--lora a=b",
            "%%vllm: --lora: LoRA adapters are not built yet: merge the adapter into its model, and give that",
        ),
        ("--fp8-kvcache", "%%vllm: --fp8-kvcache: an fp8 KV cache is not built yet"),
        ("--qqqq 3", "%%vllm: unknown flag --qqqq; %vllm -h shows them all"),
        ("Tell me a joke", "%%vllm: unexpected 'Tell'; the prompt goes on the lines below"),
        ("--temperature hot", "%%vllm: argument --temperature: invalid float value: 'hot'"),
        ("--temperature 200", "%%vllm: temperature must be a number from 0 to 100, not 200.0"),
        ("--top-p 0", "%%vllm: top_p must be a number from 1e-06 to 1, not 0.0"),
        ("--seed", "%%vllm: argument --seed: expected one argument"),
        ("-o 3x", "%%vllm: -o takes a variable name, not '3x'"),
        ("-o class", "%%vllm: -o takes a variable name, not 'class'"),
        ("--raw --system x", "%%vllm: --system needs the chat template"),
        ("--raw --tools f", "%%vllm: --tools needs the chat template"),
        ("--choice a,b --regex c", "%%vllm: an answer has one form; drop --choice or --regex"),
        ("--choice ''", "%%vllm: structured_outputs.choice must be a list of 1 to 1,024 texts, none empty"),
        ("--regex ''", "%%vllm: structured_outputs.regex must be a text of 1 to"),
        ("--schema ''", "%%vllm: --schema takes a name of this notebook, not ''"),
        ("--chat talk -n 2", "%%vllm: --chat goes on with one answer, so -n can't be 2"),
        ("--schema Ctiy", "%%vllm: --schema: 'Ctiy' is not defined in this notebook; did you mean 'City'?"),
        ("--schema City()", "%%vllm: --schema takes a name of this notebook or a type such as list[City]"),
        ("--schema 'a b'", "%%vllm: --schema takes a name of this notebook, not 'a b'"),
        ("--schema City.x", "%%vllm: --schema City.x: type object 'City' has no attribute 'x'"),
        ("--schema none.json", "%%vllm: --schema none.json: No such file or directory"),
        ("--schema '{\"a\": '", "%%vllm: --schema: this is not JSON: "),
        ("--tools dept", "%%vllm: --tools: 'dept' is not defined in this notebook; did you mean 'depth'?"),
        ("--tools depth,number", "%%vllm: --tools takes names of functions, separated by commas"),
        ("--stop-token-ids x", "%%vllm: argument --stop-token-ids: invalid list of token ids value: 'x'"),
        ("--logit-bias 5", "%%vllm: argument --logit-bias: invalid ID:BIAS value: '5'"),
        ("--system don't", "no closing quotation in: --system don't"),
        ("--system {{ persona }}", "{{ persona }}: 'persona' is not defined in this notebook"),
    ],
)
def test_mistakes(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_cell(line, NAMESPACE)
    assert type(caught.value) is UsageError
    assert str(caught.value).startswith(message)


@given(st.text(), st.text())
def test_an_interpolated_value_is_one_word_whatever_it_holds(first: str, second: str) -> None:
    words = split("--system {{ first }} -o x --stop 'a{{ second }}b'", {"first": first, "second": second})
    assert words == ["--system", first, "-o", "x", "--stop", f"a{second}b"]
