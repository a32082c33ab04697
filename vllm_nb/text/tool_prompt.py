"""Tools for models whose chat template knows none: described in the system message, calls and results as text.

The wording and the format are those of Hermes 2 Pro and Qwen 2.5, which many models have seen: a call is a JSON object
between <tool_call> and </tool_call>, a result stands between <tool_response> and </tool_response>.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vllm_nb.messages import ChatMessage, TextPart, ToolCall

_PROMPT = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def with_tools_as_text(messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    """The conversation without tool calls and tool turns, and with `tools` in its system message."""
    told = [_as_text(message) for message in messages]
    if not tools:
        return told
    prompt = _PROMPT.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if told and told[0].role in ("system", "developer"):
        first = told.pop(0)
        prompt = f"{first.text}\n\n{prompt}"
    return [ChatMessage("system", prompt), *told]


def _as_text(message: ChatMessage) -> ChatMessage:
    if message.role == "tool":
        return ChatMessage("user", f"<tool_response>\n{message.text}\n</tool_response>")
    if message.tool_calls:
        calls = "\n".join(map(_call_text, message.tool_calls))
        content = (TextPart(f"{message.text}\n{calls}" if message.text else calls),)
        return replace(message, content=content, tool_calls=())
    return message


def _call_text(call: ToolCall) -> str:
    return f'<tool_call>\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}\n</tool_call>'
