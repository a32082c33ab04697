"""From the engine's tokens to what a chat's answer says: reasoning, text and calls, each where it belongs."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from vllm_nb.engine.scheduler import TokenOutput
from vllm_nb.engine.sequence import Sequence
from vllm_nb.errors import GenerationError, RequestError
from vllm_nb.request import Request
from vllm_nb.response import Response
from vllm_nb.sampling import SamplingParams
from vllm_nb.text.parsing.families.hermes import HERMES
from vllm_nb.text.parsing.parser import OutputParser
from vllm_nb.text.tokenizer import Tokenizer

CALL = '<tool_call>{"name": "f", "arguments": {"a": "stop"}}</tool_call>'


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Every byte is a token, and so are the marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    marks = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<end>")
    backend.add_tokens([AddedToken(mark, special=False) for mark in marks])
    return Tokenizer(backend, bos_id=None, eos_ids=(), prefix=())


class Answering:
    """A response of `n` choices, fed by hand."""

    def __init__(self, tokenizer: Tokenizer, n: int = 1, include_reasoning: bool = True, **params):
        self.tokenizer = tokenizer
        shared = {"request_id": "r", "params": SamplingParams(n=n, **params), "seed": 1, "max_tokens": 999}
        shared |= {"stop_ids": frozenset(), "arrived": 0.0}
        self.sequences = [Sequence.new(np.array([1, 2], np.int32), index=i, **shared) for i in range(n)]
        parsers = [OutputParser(HERMES, tokenizer, {"f": {}}) for _ in range(n)]
        self.aborted: list[int] = []
        request = Request(self.sequences, parsers, include_reasoning)
        self.response = Response(request, tokenizer, lambda _, index, reason: self.aborted.append(index))

    def say(self, text: str, reason: str | None = "stop", index: int = 0, **ending) -> list:
        ids = self.tokenizer.encode(text, parse_special=True)
        outputs = [TokenOutput(self.sequences[index], token) for token in ids]
        outputs[-1].finish_reason = reason
        for name, value in ending.items():
            setattr(outputs[-1], name, value)
        return [item for output in outputs for item in self.response.receive([output])]


def test_each_part_is_where_it_belongs(tokenizer):
    answering = Answering(tokenizer)
    items = answering.say(f"<think>\nHm.\n</think>\n\nI call.\n{CALL}")
    choice = answering.response.output.choices[0]
    assert (choice.reasoning, choice.text, choice.finish_reason) == ("Hm.", "I call.", "tool_calls")
    assert [(call.name, json.loads(call.arguments)) for call in choice.tool_calls] == [("f", {"a": "stop"})]
    assert "".join(item.text for item in items) == choice.text
    assert "".join(item.reasoning for item in items) == choice.reasoning
    assert "".join(d.arguments for item in items for d in item.tool_calls) == choice.tool_calls[0].arguments
    assert items[-1].finish_reason == "tool_calls"
    assert items[-1].usage.reasoning_tokens == len("\nHm.\n") + 2
    assert sum(len(item.token_ids) for item in items) == items[-1].usage.completion_tokens == len(choice.token_ids)


def test_stop_texts_end_the_answer_not_the_reasoning_or_a_call(tokenizer):
    answering = Answering(tokenizer, stop="stop")
    answering.say(f"<think>stop</think>{CALL}", None)
    answering.say("and stop here", None)
    choice = answering.response.output.choices[0]
    assert (choice.reasoning, choice.text, choice.stop_reason) == ("stop", "and ", "stop")
    assert answering.aborted == [0]
    assert len(choice.tool_calls) == 1


def test_reasoning_may_be_left_out(tokenizer):
    answering = Answering(tokenizer, include_reasoning=False)
    items = answering.say("<think>Hm.</think>Yes.")
    assert not any(item.reasoning for item in items)
    assert answering.response.output.reasoning == ""
    assert items[-1].usage.reasoning_tokens == 5


def test_choices_are_parsed_apart(tokenizer):
    answering = Answering(tokenizer, n=2)
    answering.say(CALL[:20], None, index=0)
    answering.say("plain", "stop", index=1)
    answering.say(CALL[20:], "stop", index=0)
    first, second = answering.response.output.choices
    assert (len(first.tool_calls), first.text, first.finish_reason) == (1, "", "tool_calls")
    assert (second.tool_calls, second.text, second.finish_reason) == ([], "plain", "stop")


def test_a_broken_call_is_the_answers_text(tokenizer):
    answering = Answering(tokenizer)
    answering.say("<tool_call>{oops}</tool_call>")
    choice = answering.response.output.choices[0]
    assert (choice.text, choice.tool_calls, choice.finish_reason) == ("<tool_call>{oops}</tool_call>", [], "stop")


def test_an_error_of_the_request_is_told_from_one_of_the_engine(tokenizer):
    for refused, kind in ((True, RequestError), (False, GenerationError)):
        with pytest.raises(kind, match="no way"):
            Answering(tokenizer).say("x", "error", error="no way", refused=refused)
