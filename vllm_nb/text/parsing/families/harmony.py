"""gpt-oss: messages in channels, each with a header.

<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...<|return|>
<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>
"""

from vllm_nb.text.parsing.family import MALFORMED, CallSyntax, Family, Go, Sink, State
from vllm_nb.text.parsing.json_calls import JsonArguments

_RECIPIENT = " to=functions."


def _name(header: str) -> str:
    """Of the function that the message is for."""
    _, found, rest = header.partition(_RECIPIENT)
    return rest.partition("<|")[0].split()[0] if found and rest.strip() else ""


def _part(header: str) -> str:
    if _name(header):
        return "arguments"
    channel = header.partition("<|channel|>")[2].split()
    return "reasoning" if channel[:1] == ["analysis"] else "content"


_NEXT = {"<|end|>": "between", "<|call|>": "between", "<|return|>": "between", "<|start|>": "header"}

HARMONY = Family(
    "harmony",
    {
        "header": State(Sink.HEAD, {"<|message|>": Go(_part, _name)}, call=True),
        "between": State(Sink.BLANK, {"<|start|>": "header"}, otherwise="content"),
        "content": State(Sink.CONTENT, _NEXT),
        "reasoning": State(Sink.REASONING, _NEXT),
        "arguments": State(Sink.PAYLOAD, dict.fromkeys(_NEXT, MALFORMED), call=True, payload=JsonArguments,
                           then="closing"),
        "closing": State(Sink.BLANK, _NEXT, otherwise="content"),
    },
    start="header",
    controls=("<|channel|>", "<|constrain|>"),
    preface=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
    answer="<|channel|>final<|message|>",
    # Without the <|call|> that ends it, which ends the output, too: when the arguments are complete, so is the answer.
    forced=CallSyntax(
        open="<|channel|>commentary to=functions.", middle=" <|constrain|>json<|message|>", close="", between="",
        several=False,
    ),
)  # fmt: skip
