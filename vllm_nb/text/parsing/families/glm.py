"""GLM 4.5 and 4.6.

<tool_call>f
<arg_key>a</arg_key>
<arg_value>1</arg_value>
</tool_call>
"""

from vllm_nb.text.parsing.family import Family, Go, Sink, State

_NEXT = {"<arg_key>": "key", "</tool_call>": "content"}

GLM = Family(
    "glm",
    {
        "content": State(Sink.CONTENT, {"<tool_call>": "name"}),
        "name": State(Sink.HEAD, {mark: Go(to, str.strip) for mark, to in _NEXT.items()}, call=True),
        "key": State(Sink.KEY, {"</arg_key>": "between"}, call=True),
        "between": State(Sink.BLANK, {"<arg_value>": "value"}, call=True),
        "value": State(Sink.VALUE, {"</arg_value>": "more"}, call=True),
        "more": State(Sink.BLANK, _NEXT, call=True),
    },
    think=("<think>", "</think>"),
)
