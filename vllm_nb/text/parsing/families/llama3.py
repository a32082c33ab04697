"""Llama 3.1 to 3.3: the whole answer is a call, perhaps after <|python_tag|>; several are separated by semicolons.

{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}
"""

from vllm_nb.text.parsing.family import CallSyntax, Family, Go, Sink, State
from vllm_nb.text.parsing.json_calls import JsonCalls

_BEGINS: dict[str, str | Go] = {"{": Go("call", keep=1), "[{": Go("call", keep=2), "<|python_tag|>": "call"}

LLAMA3 = Family(
    "llama3",
    {
        "start": State(Sink.BLANK, _BEGINS, otherwise="content"),
        "content": State(Sink.CONTENT, {"<|python_tag|>": "call"}),
        "call": State(Sink.PAYLOAD, call=True, payload=JsonCalls, then="more"),
        "more": State(Sink.BLANK, {";": "next", **_BEGINS}, otherwise="content"),
        "next": State(Sink.BLANK, _BEGINS, call=True),
    },
    start="start",
    think=("<think>", "</think>"),
    known_names=True,
    forced=CallSyntax(open='{"name": "', middle='", "parameters": ', close="}", between="; "),
)
