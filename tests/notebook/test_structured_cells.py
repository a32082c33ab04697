"""Values and tools from the engine itself: a model that small says nonsense, but in the form that was asked for."""

import re
from dataclasses import dataclass

import pytest
from IPython.core.error import UsageError


@dataclass
class City:
    name: str
    people: int


@pytest.fixture(autouse=True)
def ready(shell, run, engine):
    shell.user_ns["City"] = City
    run("%vllm start")


def test_forms(shell, run) -> None:
    city = run("%%vllm --schema City --temperature 0 --max-tokens 120 -o city\nName a city in Germany.")
    assert city.success, city.error_in_exec
    assert isinstance(shell.user_ns["city"], City)
    assert run("%%vllm --choice yes,no -o word\nIs the sea wet?").result.value in ("yes", "no")
    assert shell.user_ns["word"] in ("yes", "no")
    number = run("%%vllm --regex [1-9][0-9]{2} --logprobs 2\nHow many?").result.value
    assert 100 <= int(number) <= 999


def test_a_grammar(shell, run) -> None:
    assert run("""%%vllm --grammar 'start: "yes" | "no"'\nIs the sea wet?""").result.value in ("yes", "no")
    shell.user_ns["lark"] = 'start: colour " " ANIMAL\ncolour: "red" | "blue"\nANIMAL: /[a-z]{3,8}/'
    run("%%vllm --grammar {{ lark }} -o beast\nName a beast.")
    assert re.fullmatch("(red|blue) [a-z]{3,8}", shell.user_ns["beast"])
    error = run("%%vllm --grammar 'start: x'\nName a beast.").error_in_exec
    assert type(error) is UsageError
    assert "cannot be compiled" in str(error)


def test_tools_that_the_model_must_call(shell, run) -> None:
    """Beside tools an answer may also be one of --regex; this one the model finds less likely than a call."""
    called = []

    def depth(of: str) -> float:
        """How deep a water is."""
        called.append(of)
        return 3688.0

    shell.user_ns["depth"] = depth
    run("%config VllmMagics.tool_rounds = 1")
    flags = "--chat sea --tools depth --yes --temperature 0 --max-tokens 60 --regex 3688"
    error = run(f"%%vllm {flags}\nHow deep is the sea?").error_in_exec
    assert type(error) is UsageError
    assert "the model still calls tools after 1 round: stopped" in str(error)
    assert called
    assert all(isinstance(of, str) for of in called)
    shown = [output["data"]["text/plain"] for output in shell.display_pub.outputs]
    assert [f"depth(of={of!r}) → 3688.0" in shown for of in called] == [True] * len(called)
    run("%vllm chat show sea -o sea")
    turns = shell.user_ns["sea"].branch
    assert [turn.role for turn in turns] == ["user", "assistant", *["tool"] * len(called), "assistant"]
    assert {call["function"]["name"] for call in turns[-1].tool_calls} == {"depth"}


def test_a_value_that_was_cut_off_says_so(shell, run) -> None:
    error = run("%%vllm --schema City --max-tokens 3\nName a city.").error_in_exec
    cut_off = "the answer was cut off by max_tokens or the context's end before it was whole"
    assert str(error) == f"{cut_off}; its text is in _.text"
    assert shell.user_ns["_"].finish_reason == "length"


def test_in_a_script_and_a_batch(engine) -> None:
    options = {"schema": City, "temperature": 0, "max_tokens": 120}
    alone = engine.chat("Name a city.", **options).value
    assert [each.value for each in engine.batch(["Name a city."] * 2, **options)] == [alone, alone]
