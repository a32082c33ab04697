"""Which family a model's output is read as: by its template and special tokens, or as the settings say."""

from collections.abc import Mapping
from dataclasses import replace

from vllm_nb.errors import ModelLoadError
from vllm_nb.text.parsing.families.deepseek import DEEPSEEK
from vllm_nb.text.parsing.families.gemma import GEMMA
from vllm_nb.text.parsing.families.glm import GLM
from vllm_nb.text.parsing.families.harmony import HARMONY
from vllm_nb.text.parsing.families.hermes import HERMES
from vllm_nb.text.parsing.families.llama3 import LLAMA3
from vllm_nb.text.parsing.families.mistral import MISTRAL
from vllm_nb.text.parsing.families.phi import PHI
from vllm_nb.text.parsing.families.pythonic import PYTHONIC
from vllm_nb.text.parsing.families.qwen_coder import QWEN_CODER
from vllm_nb.text.parsing.family import Family

FAMILIES = {
    family.name: family
    for family in (HERMES, LLAMA3, PYTHONIC, MISTRAL, DEEPSEEK, GLM, PHI, GEMMA, QWEN_CODER, HARMONY)
}
THINKING = {"think": ("<think>", "</think>"), "mistral": ("[THINK]", "[/THINK]")}

# Marks in the vocabulary or the template, first match counts: (mark, family)
_SIGNS = (
    ("<|channel|>", HARMONY),
    ("<｜tool▁calls▁begin｜>", DEEPSEEK),
    ("[TOOL_CALLS]", MISTRAL),
    ("<start_function_call>", GEMMA),
    ("<|tool_call>", GEMMA),
    ("<arg_key>", GLM),
    ("<function=", QWEN_CODER),
    ("<|tool_call|>", PHI),
    ("functools[", PHI),
    ("<tool_call>", HERMES),
    ("<|python_start|>", PYTHONIC),
    ("<|python_tag|>", LLAMA3),
)
_ALWAYS = (HARMONY,)  # whose answers are in its syntax even where no tools are known


def choose_family(
    template: str, knows_tools: bool, added: Mapping[str, int], tools: str = "auto", reasoning: str = "auto"
) -> Family:
    """template: the source of the chat template; knows_tools: whether it tells the model of tools (else that is done
    as hermes does). added: the vocabulary's added tokens. tools, reasoning: the settings tool_parser and
    reasoning_parser: "auto", "none" or a name. Raises ModelLoadError for an unknown name."""
    family = _by_signs(template, knows_tools, added) if tools == "auto" else FAMILIES.get(tools)
    if tools == "none":
        family = HERMES
        family = replace(family, states={"content": replace(family.states["content"], on={})})
    if family is None:
        raise ModelLoadError(f"tool_parser must be one of auto, none, {', '.join(FAMILIES)}; not {tools!r}")
    if reasoning == "auto":
        seen = family.think is not None and (family.think[0] in added or family.think[0] in template)
        return family if seen else replace(family, think=_thinking(template, added))
    if reasoning != "none" and reasoning not in THINKING:
        raise ModelLoadError(f"reasoning_parser must be one of auto, none, {', '.join(THINKING)}; not {reasoning!r}")
    return replace(family, think=THINKING.get(reasoning))


def _by_signs(template: str, knows_tools: bool, added: Mapping[str, int]) -> Family:
    for mark, family in _SIGNS:
        if (knows_tools or family in _ALWAYS) and (mark in added or mark in template):
            return family
    return HERMES


def _thinking(template: str, added: Mapping[str, int]) -> tuple[str, str] | None:
    return next((marks for marks in THINKING.values() if marks[0] in added or marks[0] in template), None)
