"""Qwen3-Coder.

<tool_call>
<function=f>
<parameter=a>
1
</parameter>
</function>
</tool_call>
"""

from vllm_nb.text.parsing.family import Family, Go, Sink, State


def _unwrapped(value: str) -> str:
    """Without the line breaks that set a value apart from its marks."""
    return value.removeprefix("\n").removesuffix("\n")


QWEN_CODER = Family(
    "qwen_coder",
    {
        "content": State(Sink.CONTENT, {"<tool_call>": "call", "<function=": "name"}),
        "call": State(Sink.BLANK, {"<function=": "name"}, call=True),
        "name": State(Sink.HEAD, {">": Go("parameters", str.strip)}, call=True),
        "parameters": State(Sink.BLANK, {"<parameter=": "key", "</function>": "closing"}, call=True),
        "key": State(Sink.KEY, {">": "value"}, call=True),
        "value": State(Sink.VALUE, {"</parameter>": Go("parameters", _unwrapped)}, call=True),
        "closing": State(Sink.BLANK, {"</tool_call>": "content", "<tool_call>": "call"}, otherwise="content"),
    },
    think=("<think>", "</think>"),
)
