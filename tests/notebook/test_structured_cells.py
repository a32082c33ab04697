"""Values and tools from the engine itself: a model that small says nonsense, but in the form that was asked for."""

from dataclasses import dataclass

import pytest


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


def test_a_value_that_was_cut_off_says_so(shell, run) -> None:
    error = run("%%vllm --schema City --max-tokens 3\nName a city.").error_in_exec
    assert "the answer was cut off by max_tokens or the context's end before it was whole" in str(error)
    assert shell.user_ns["_"].finish_reason == "length"


def test_in_a_script_and_a_batch(engine) -> None:
    options = {"schema": City, "temperature": 0, "max_tokens": 120}
    alone = engine.chat("Name a city.", **options).value
    assert [each.value for each in engine.batch(["Name a city."] * 2, **options)] == [alone, alone]
