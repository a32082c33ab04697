"""Hermes 2 Pro, Qwen 2.5 and 3, and all models whose template knows no tools (text/tool_prompt.py).

<think> ... </think> ... <tool_call>
{"name": "f", "arguments": {"a": 1}}
</tool_call>
"""

from vllm_nb.text.parsing.family import MALFORMED, CallSyntax, Family, Sink, State
from vllm_nb.text.parsing.json_calls import JsonCalls

FORCED = CallSyntax(open='<tool_call>\n{"name": "', middle='", "arguments": ', close="}\n</tool_call>", between="\n")
HERMES = Family(
    "hermes",
    {
        "content": State(Sink.CONTENT, {"<tool_call>": "call"}),
        "call": State(Sink.PAYLOAD, {"</tool_call>": MALFORMED}, call=True, payload=JsonCalls, then="closing"),
        "closing": State(Sink.BLANK, {"</tool_call>": "content", "<tool_call>": "call"}, otherwise="content"),
    },
    think=("<think>", "</think>"),
    forced=FORCED,
)
