"""Mistral: a list of calls in the older tokenizers, a name and its arguments in those since v11.

[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]
[THINK]...[/THINK][TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}
"""

from vllm_nb.text.parsing.calls import short_call_id
from vllm_nb.text.parsing.family import MALFORMED, CallSyntax, Family, Go, Sink, State
from vllm_nb.text.parsing.json_calls import JsonArguments, JsonCalls


def _name(head: str) -> str:
    return head.partition("[CALL_ID]")[0].strip()


def _list_or_call(head: str) -> str:
    """What a bracket begins: a list after nothing; after a name there is none."""
    return MALFORMED if head.strip() else "list"


def _nothing(_: str) -> str:
    return ""


MISTRAL = Family(
    "mistral",
    {
        "content": State(Sink.CONTENT, {"[TOOL_CALLS]": "head"}),
        "head": State(
            Sink.HEAD,
            {
                "[ARGS]": Go("arguments", _name),
                "{": Go("arguments", _name, keep=1),
                "[{": Go(_list_or_call, _nothing, keep=2),
            },
            call=True,
        ),
        "list": State(Sink.PAYLOAD, call=True, payload=JsonCalls, then="more"),
        "arguments": State(Sink.PAYLOAD, call=True, payload=JsonArguments, then="more"),
        "more": State(Sink.BLANK, {"[TOOL_CALLS]": "head"}, otherwise="content"),
    },
    think=("[THINK]", "[/THINK]"),
    controls=("[CALL_ID]", "[TOOL_CONTENT]"),
    forced=CallSyntax(open="[TOOL_CALLS]", middle="[ARGS]", close="", between=""),
    new_id=short_call_id,
)
