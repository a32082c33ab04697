"""DeepSeek V3, R1 and V3.1.

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f
```json
{"a": 1}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>                      V3, R1
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>        V3.1
"""

from vllm_nb.text.parsing.family import MALFORMED, CallSyntax, Family, Go, Sink, State
from vllm_nb.text.parsing.json_calls import JsonArguments

_BEGIN, _END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEPARATOR, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


def _name(head: str) -> str:
    """Of "function<｜tool▁sep｜>f\\n```json\\n" or "f<｜tool▁sep｜>"."""
    before, _, after = head.partition(_SEPARATOR)
    return (after.partition("```")[0].strip() or before).strip()


DEEPSEEK = Family(
    "deepseek",
    {
        "content": State(Sink.CONTENT, {_BEGIN: "calls"}),
        "calls": State(Sink.BLANK, {_CALL: "head"}, call=True),
        "head": State(Sink.HEAD, {"{": Go("arguments", _name, keep=1)}, call=True),
        "arguments": State(Sink.PAYLOAD, {_CALL_END: MALFORMED}, call=True, payload=JsonArguments, then="fence"),
        "fence": State(Sink.DROP, {_CALL_END: "more", _CALL: "head", _END: "content"}),
        "more": State(Sink.BLANK, {_CALL: "head", _END: "content"}, otherwise="content"),
    },
    think=("<think>", "</think>"),
    controls=(_SEPARATOR,),
    forced=CallSyntax(
        open=f"{_CALL}function{_SEPARATOR}", middle="\n```json\n", close=f"\n```{_CALL_END}", between="\n",
        start=_BEGIN, end=_END,
    ),
)  # fmt: skip
