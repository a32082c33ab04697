"""The grammar that an answer has to follow, in llguidance's terms: structured output, forced calls, and what a model
says around them.

An answer is a reasoning, which is free, and then either calls or the answer proper. Marks that are tokens stand in a
grammar by their ids, for no text matches those.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_nb.chat_options import Tool
from vllm_nb.sampling import StructuredOutputs
from vllm_nb.text.parsing.family import CallSyntax, Family

MAX_CALLS = 16  # that one answer may be made to hold
# At most so much white space in JSON: models that do not know how to go on would write nothing else.
_JSON_OPTIONS = {"whitespace_pattern": r"[ \n]{0,20}"}
_HEAD = "%llguidance {}\n"
_TEXT = "TEXT: /(.|\\n)*/\n"


def output_grammar(wanted: StructuredOutputs) -> str:
    """Of a whole output."""
    return json.dumps({"grammars": [_part("answer", wanted)]})


def chat_grammar(
    wanted: StructuredOutputs | None,
    calls: CallSyntax | None,
    tools: Sequence[Tool],
    *,
    family: Family,
    added_ids: Mapping[str, int],
    reasoning: bool,
    several: bool,
    free: bool = False,
) -> str:
    """Of a chat's answer: as `wanted`, or calls of `tools` where there is a syntax for them.

    family: how the model marks its reasoning. added_ids: the vocabulary's added tokens. reasoning: the prompt ends
    within the reasoning. several: whether there may be more than one call. free: text as the model likes, with calls in
    it, of which only those of strict tools are held to their schemas.
    """
    parts: list[dict[str, Any]] = []
    rules, kinds = "", []
    if calls is not None:
        rules += _calls_rule(calls, tools, added_ids, several)
        kinds.append("calls")
        loose = {"type": "object"}
        parts += [
            _schema_part(f"tool{i}", loose if free and not t.strict else t.parameters) for i, t in enumerate(tools)
        ]
    if wanted is not None:
        rules += f"answer: {_literal(family.answer, added_ids)} @wanted\n"
        kinds.append("answer")
        parts.append(_part("wanted", wanted))
    thought = _thought_rules(family, added_ids, reasoning)
    body = "(TEXT calls)* TEXT" if free else f"({' | '.join(kinds)})"
    main = _HEAD + f"start: {'thought ' if thought else ''}{body}\n" + rules + thought
    if "TEXT" in main:
        main += _TEXT
    return json.dumps({"grammars": [{"name": "start", "lark_grammar": main}, *parts]})


def marks_calls(calls: CallSyntax, added_ids: Mapping[str, int]) -> bool:
    """Whether a call begins with a token of its own, so that calls can be told from text as they begin."""
    return _first_mark(calls.start + calls.open, added_ids) == 0


def _calls_rule(syntax: CallSyntax, tools: Sequence[Tool], added_ids: Mapping[str, int], several: bool) -> str:
    def literal(text: str) -> str:
        return _literal(text, added_ids)

    more = f"({literal(syntax.between)} call){{0,{MAX_CALLS - 1}}}" if several and syntax.several else ""
    rules = f"calls: {literal(syntax.start)} call {more} {literal(syntax.end)}\n"
    alternatives = " | ".join(f"call{i}" for i in range(len(tools)))
    rules += f"call: {literal(syntax.open)} ({alternatives}) {literal(syntax.close)}\n"
    for i, tool in enumerate(tools):
        rules += f"call{i}: {literal(tool.name + syntax.middle)} @tool{i}\n"
    return rules


def _thought_rules(family: Family, added_ids: Mapping[str, int], reasoning: bool) -> str:
    """What may come before: free text up to the mark that ends the reasoning, and white space."""
    marks = family.think or family.preface
    if marks is None:
        return ""
    begin, end = marks
    opened = "" if reasoning else _literal(begin, added_ids)
    if end in added_ids or _first_mark(end, added_ids) == 0:
        body = f"TEXT {_literal(end, added_ids)}"
        rules = ""
    else:
        body = "thinking"
        rules = f"thinking[lazy]: TEXT {json.dumps(end)}\n"
    once = f"({opened} {body})" + ("" if reasoning else "?")
    return f"thought: {once} SPACE\nSPACE: /[ \\n]{{0,4}}/\n{rules}"


def _first_mark(text: str, added_ids: Mapping[str, int]) -> int | None:
    found = _marks_in(text, added_ids)
    return found.start() if found else None


def _marks_in(text: str, added_ids: Mapping[str, int]) -> re.Match[str] | None:
    """The first of the tokens' names in a text of ours, longest first."""
    names = [name for name in added_ids if name in text and not name.isspace()]
    return re.search("|".join(map(re.escape, sorted(names, key=len, reverse=True))), text) if names else None


def _literal(text: str, added_ids: Mapping[str, int]) -> str:
    """Exactly this text, its marks as tokens."""
    pieces = []
    while found := _marks_in(text, added_ids):
        if found.start():
            pieces.append(json.dumps(text[: found.start()]))
        pieces.append(f"<[{added_ids[found[0]]}]>")
        text = text[found.end() :]
    if text:
        pieces.append(json.dumps(text))
    return " ".join(pieces)


def _part(name: str, wanted: StructuredOutputs) -> dict[str, Any]:
    if isinstance(wanted.json, Mapping):
        return _schema_part(name, wanted.json)
    if wanted.json_object:
        return _schema_part(name, {"type": "object"})
    if wanted.choice is not None:
        lark = "start: " + " | ".join(json.dumps(text) for text in wanted.choice)
    elif wanted.regex is not None:
        from llguidance import regex_to_lark

        lark = f"start: /{regex_to_lark(wanted.regex)}/"
    else:
        lark = wanted.grammar or ""
    return {"name": name, "lark_grammar": lark}


def _schema_part(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "json_schema": {**schema, "x-guidance": _JSON_OPTIONS}}
