"""Walks through the grammars of chats: whatever a model says within one, its family's parser finds a valid answer."""

import json
import random
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from vllm_nb.chat_options import ChatOptions, Tool
from vllm_nb.engine.grammar import Grammar, unpacked
from vllm_nb.messages import ChatMessage
from vllm_nb.sampling import StructuredOutputs
from vllm_nb.text.chat_template import ChatTemplate
from vllm_nb.text.constraints import Grammars
from vllm_nb.text.dialogue import Dialogue
from vllm_nb.text.parsing.choose import FAMILIES
from vllm_nb.text.tokenizer import Tokenizer

TOOLS = [
    Tool(
        "get_weather",
        parameters={
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"enum": [1, 2]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    ),
    Tool("now", parameters={"type": "object", "additionalProperties": False}),
]
WANTED = StructuredOutputs(json={"enum": ["yes", {"a": [1]}]})
SCHEMAS = {tool.name: tool.parameters for tool in TOOLS}
TEMPLATE = "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}"


def vocabulary(marks: list[str]) -> Tokenizer:
    """Every byte is a token, and so is each mark; the last one ends an output."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_tokens([AddedToken(mark, special=False) for mark in [*marks, "<end>"]])
    return Tokenizer(backend, bos_id=None, eos_ids=(backend.token_to_id("<end>"),), prefix=())


def marks_of(name: str) -> list[str]:
    family = FAMILIES[name]
    return sorted(mark for mark in {*family.terminals, *(family.think or ())} if mark[0] in "<[" and mark[-1] in ">]")


def walk(grammar: Grammar, tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    """Tokens drawn from those allowed, marks rather than text, so that it comes to an end."""
    said: list[int] = []
    size, stop = tokenizer.vocab_size, np.array(tokenizer.eos_ids)
    while not grammar.is_complete:
        bits = np.zeros(-(-size // 32), np.uint32)
        grammar.fill(bits, stop, True)
        assert not grammar.error
        allowed = np.flatnonzero(unpacked(bits[None], size)[0]).tolist()
        marks = [token for token in allowed if token > 255]
        token = rng.choice(marks if marks and rng.random() < 0.4 else allowed)
        if token in tokenizer.eos_ids:
            break
        said.append(token)
        assert grammar.advance(token)
        assert len(said) < 5000
    return said


# In free text a mark of letters would be found by drawing letters, which takes for ever.
CASES = [(name, True, prompt) for name in FAMILIES for prompt in ("Hi", "Hi<think>\n")]
CASES += [(name, False, "Hi") for name in FAMILIES if name != "harmony"]


def dialogue_of(name: str, as_tokens: bool, prompt: str, options: ChatOptions):
    tokenizer = vocabulary(marks_of(name) if as_tokens else [])
    reasoning = "auto" if as_tokens else "none"
    dialogue = Dialogue(ChatTemplate(TEMPLATE, tokenizer, "m"), tokenizer, name, reasoning)
    ids = dialogue.encode([ChatMessage("user", "x")], options) + tokenizer.encode(prompt, parse_special=True)
    return tokenizer, dialogue, ids


@pytest.mark.parametrize(("name", "as_tokens", "prompt"), CASES)
@pytest.mark.parametrize("wanted", [None, WANTED], ids=["calls", "calls or schema"])
def test_whatever_is_said_within_the_grammar_is_valid(name, as_tokens, prompt, wanted):
    options = ChatOptions(tools=TOOLS, tool_choice="required" if wanted is None else "auto")
    tokenizer, dialogue, ids = dialogue_of(name, as_tokens, prompt, options)
    grammars = Grammars(tokenizer, tokenizer.eos_ids, tokenizer.vocab_size, dialogue.control_ids)
    compiled = grammars.submit(dialogue.grammar(ids, options, wanted)).result()
    called = answered = 0
    for seed in range(8):
        said = walk(Grammar(compiled.deep_copy(), grammars.eos_ids), tokenizer, random.Random(seed))
        (parser,) = dialogue.parsers(ids, options, wanted, 1)
        parsed = [parser.push(said), parser.finish(cut=False)]
        text, calls = "".join(part.text for part in parsed), parser.tool_calls
        assert bool(calls) != bool(text)
        called, answered = called + bool(calls), answered + bool(text)
        for call in calls:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
        if text:
            jsonschema.validate(json.loads(text), WANTED.json)
    assert called
    assert bool(answered) <= (wanted is not None)


@pytest.mark.parametrize("name", ["hermes", "mistral", "deepseek", "phi"])
def test_strict_tools_are_held_to_their_schema_whenever_they_are_called(name):
    weather, now = TOOLS
    options = ChatOptions(tools=[replace(weather, strict=True), now])
    tokenizer, dialogue, ids = dialogue_of(name, True, "Hi", options)
    grammars = Grammars(tokenizer, tokenizer.eos_ids, tokenizer.vocab_size, dialogue.control_ids)
    compiled = grammars.submit(dialogue.grammar(ids, options, None)).result()
    names = set()
    for seed in range(40):
        said = walk(Grammar(compiled.deep_copy(), grammars.eos_ids), tokenizer, random.Random(seed))
        (parser,) = dialogue.parsers(ids, options, None, 1)
        parser.push(said)
        parser.finish(cut=False)
        for call in parser.tool_calls:
            names.add(call.name)
            if call.name == "get_weather":
                jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    assert names == set(SCHEMAS)


def test_reasoning_that_the_prompt_has_opened_goes_on_freely():
    options = ChatOptions(tools=TOOLS, tool_choice="required")
    letter = ord("!") - 33  # the first of the byte alphabet
    for prompt, free in (("Hi<think>\n", True), ("Hi", False)):
        tokenizer, dialogue, ids = dialogue_of("hermes", True, prompt, options)
        grammars = Grammars(tokenizer, tokenizer.eos_ids, tokenizer.vocab_size, dialogue.control_ids)
        grammar = Grammar(grammars.submit(dialogue.grammar(ids, options, None)).result(), grammars.eos_ids)
        bits = np.zeros(-(-tokenizer.vocab_size // 32), np.uint32)
        grammar.fill(bits, np.array(tokenizer.eos_ids), True)
        assert bool(unpacked(bits[None], tokenizer.vocab_size)[0, letter]) is free


def test_nothing_is_constrained_that_need_not_be():
    _, dialogue, ids = dialogue_of("hermes", True, "Hi", ChatOptions())
    assert dialogue.grammar(ids, ChatOptions(tools=TOOLS), None) is None
    assert dialogue.grammar(ids, ChatOptions(), None) is None
