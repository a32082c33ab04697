"""Which family a model's output is read as."""

import pytest

from vllm_nb.api import Engine
from vllm_nb.config import EngineConfig
from vllm_nb.errors import ModelLoadError
from vllm_nb.text.parsing.choose import choose_family


@pytest.mark.parametrize(
    ("template", "added", "name"),
    [
        ("{{ tools }}<tool_call>", ["<think>"], "hermes"),
        ("{{ tools }}", ["<|python_tag|>", "<|eot_id|>"], "llama3"),
        ("{{ tools }}", ["<|python_start|>", "<|python_end|>"], "pythonic"),
        ("{{ tools }}[TOOL_CALLS]", [], "mistral"),
        ("{{ tools }}", ["<｜tool▁calls▁begin｜>", "<think>"], "deepseek"),
        ("{{ tools }}<tool_call><arg_key>", ["<tool_call>"], "glm"),
        ("{{ tools }}<tool_call>\n<function=", ["<tool_call>"], "qwen_coder"),
        ("{{ tools }}", ["<|tool_call|>"], "phi"),
        ("{{ tools }}", ["<start_function_call>"], "gemma"),
        ("no place for them", ["[TOOL_CALLS]", "<|python_tag|>"], "hermes"),
        ("", ["<|channel|>"], "harmony"),
    ],
)
def test_the_family_by_template_and_tokens(template, added, name):
    ids = {token: i for i, token in enumerate(added)}
    family = choose_family(template, "tools" in template, ids)
    assert family.name == name
    assert (family.think is not None) == ("<think>" in added)


def test_the_family_by_the_settings():
    assert choose_family("", False, {}, "glm", "mistral").name == "glm"
    assert choose_family("", False, {}, "glm", "mistral").think == ("[THINK]", "[/THINK]")
    assert choose_family("<think>", True, {"<think>": 1}, "llama3", "none").think is None
    assert choose_family("<tool_call>", True, {}, "none").terminals == set()
    with pytest.raises(ModelLoadError, match=r"tool_parser must be one of auto, none, hermes, .*; not 'x'"):
        choose_family("", False, {}, "x")
    with pytest.raises(ModelLoadError, match="reasoning_parser must be one of auto, none, think, mistral; not 'x'"):
        choose_family("", False, {}, "auto", "x")


def test_an_unknown_name_is_refused_before_the_weights_are_loaded(smollm2_path, monkeypatch):
    monkeypatch.setattr("vllm_nb.api.build_core", lambda *_: pytest.fail("the weights are being loaded"))
    with pytest.raises(ModelLoadError, match="tool_parser must be one of auto"):
        Engine(smollm2_path, EngineConfig(tool_parser="x"))
