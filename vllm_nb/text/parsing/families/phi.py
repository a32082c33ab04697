"""Phi-4-mini: <|tool_call|>[{"name": "f", "arguments": {"a": 1}}]<|/tool_call|>, or functools[...]"""

from vllm_nb.text.parsing.family import MALFORMED, CallSyntax, Family, Go, Sink, State
from vllm_nb.text.parsing.json_calls import JsonCalls

PHI = Family(
    "phi",
    {
        "content": State(Sink.CONTENT, {"<|tool_call|>": "call", "functools[": Go("call", keep=1)}),
        "call": State(Sink.PAYLOAD, {"<|/tool_call|>": MALFORMED}, call=True, payload=JsonCalls, then="closing"),
        "closing": State(Sink.BLANK, {"<|/tool_call|>": "content", "<|tool_call|>": "call"}, otherwise="content"),
    },
    think=("<think>", "</think>"),
    forced=CallSyntax(
        open='{"name": "', middle='", "arguments": ', close="}", between=", ",
        start="<|tool_call|>[", end="]<|/tool_call|>",
    ),
)  # fmt: skip
