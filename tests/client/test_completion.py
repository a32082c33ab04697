"""What a completion says of itself."""

import pytest

from vllm_nb.client.completion import Completion, RequestTimings
from vllm_nb.messages import ChatMessage, ToolCall
from vllm_nb.outputs import StreamItem, ToolCallDelta, Usage


def completion(*texts: str, reason: str | None = "stop", cached: int = 32, tokens: int = 12) -> Completion:
    result = Completion(model="m", request_id="r", usage=Usage(45, tokens, cached))
    for index, text in enumerate(texts):
        result.add(StreamItem("r", index, text, [1] * tokens, finish_reason=reason))
    result.timings = RequestTimings(0.01, 0.11, 85.31, 0.25)
    return result


def test_the_summary_is_one_line():
    line = completion("Hi").summary
    assert line == "12 tokens · 85.3 tok/s · first token 0.11 s · 32 of 45 prompt tokens from cache"


def test_it_says_only_what_is_known_and_why_it_ended():
    assert completion("Hi", cached=0, tokens=1).summary == "1 token · 85.3 tok/s · first token 0.11 s"
    assert completion("Hi", reason="length").summary.endswith("cut off at max_tokens or the context's end")
    partial = Completion()
    partial.add(StreamItem("r", 0, "Hal", [5, 6]))
    partial.mark_aborted()
    assert partial.summary == "2 tokens · interrupted"
    assert partial.finish_reason == "abort"


def test_pieces_add_up_choice_by_choice():
    result = Completion()
    for index, text, ids in [(1, "b", [1]), (0, "a", [2]), (1, "B", [3, 4])]:
        result.add(StreamItem("r", index, text, ids))
    result.add(StreamItem("r", 1, "", [], finish_reason="stop", stop_reason="x"))
    assert [choice.text for choice in result.choices] == ["a", "bB"]
    assert result.choices[1].token_ids == [1, 3, 4]
    assert (result.text, result.token_ids, result.finish_reason) == ("a", [2], None)
    assert result.choices[1].stop_reason == "x"
    result.mark_aborted()
    assert [choice.finish_reason for choice in result.choices] == ["abort", "stop"]


def test_it_shows_markdown_with_the_summary_and_plain_text():
    bundle = completion("**Hi**")._repr_mimebundle_()
    assert bundle["text/plain"] == "**Hi**" == str(completion("**Hi**"))
    assert bundle["text/markdown"].startswith("**Hi**\n\n<small>12 tokens · ")
    both = completion("a", "b")._repr_mimebundle_()
    assert both["text/plain"] == "a\n\nb"
    assert both["text/markdown"].startswith("a\n\n---\n\nb\n\n<small>")


@pytest.mark.parametrize(
    ("text", "closed"),
    [("```py\nx = 1", True), ("```py\nx = 1\n```", False), ("a `b", False), ("1.\n   ```sh\n   ls", True)],
)
def test_a_code_block_cut_off_does_not_swallow_the_summary(text, closed):
    markdown = completion(text)._repr_mimebundle_()["text/markdown"]
    assert markdown.startswith(f"{text}\n```\n\n<small>" if closed else f"{text}\n\n<small>")


def test_reasoning_and_calls_come_in_pieces_and_stand_beside_the_text():
    result = Completion()
    result.add(StreamItem("r", 0, "", [1], reasoning="<b>Let me"))
    result.add(StreamItem("r", 0, "", [2], reasoning=" see."))
    result.add(StreamItem("r", 0, "Well.", [3]))
    result.add(StreamItem("r", 0, "", [4], tool_calls=[ToolCallDelta(0, "c1", "depth", '{"of"')]))
    result.add(StreamItem("r", 0, "", [5], tool_calls=[ToolCallDelta(0, None, None, ': "sea"}')]))
    result.add(StreamItem("r", 0, "", [6], tool_calls=[ToolCallDelta(1, "c2", "tide")]))
    calls = [ToolCall("c1", "depth", '{"of": "sea"}'), ToolCall("c2", "tide", "")]
    assert (result.text, result.reasoning, result.tool_calls) == ("Well.", "<b>Let me see.", calls)
    assert result.message == ChatMessage("assistant", "Well.", tuple(calls), reasoning_content="<b>Let me see.")
    shown = result._repr_mimebundle_()["text/markdown"]
    assert "<summary>Reasoning</summary>" in shown
    assert "&lt;b&gt;Let me" in shown
    assert 'depth({"of": "sea"})' in shown
