"""How one model converses: its chat template for what goes in, its family of output syntax for what comes out."""

from collections.abc import Sequence
from dataclasses import replace

from vllm_nb.chat_options import ChatOptions
from vllm_nb.messages import ChatMessage
from vllm_nb.sampling import StructuredOutputs
from vllm_nb.text.chat_template import ChatTemplate
from vllm_nb.text.grammar import chat_grammar, marks_calls
from vllm_nb.text.parsing.choose import choose_family
from vllm_nb.text.parsing.families.hermes import HERMES
from vllm_nb.text.parsing.family import Family
from vllm_nb.text.parsing.parser import OutputParser
from vllm_nb.text.tokenizer import Tokenizer

_TAIL = 16  # tokens at the prompt's end among which the mark that opens the reasoning would be


class Dialogue:
    """tool_parser, reasoning_parser: "auto", "none" or a family's name. Raises ModelLoadError for an unknown one."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, tool_parser: str, reasoning_parser: str):
        self._template, self._tokenizer = template, tokenizer
        signs = template.source or "", template.knows_tools, tokenizer.added_ids
        self.family = choose_family(*signs, tool_parser, reasoning_parser)

    def encode(self, messages: Sequence[ChatMessage], options: ChatOptions) -> list[int]:
        """The prompt. Raises RequestError."""
        return self._template.render([*messages], **options.template_variables())

    def parsers(
        self, prompt: Sequence[int], options: ChatOptions, wanted: StructuredOutputs | None, count: int
    ) -> list[OutputParser] | None:
        """For the answers to a prompt; None where the output is the answer as it stands."""
        family, tools = self._family_for(options, wanted), options.usable_tools
        if not tools and family.think is None and "reasoning" not in family.states:
            return None
        schemas = {tool.name: tool.parameters for tool in tools}
        state = "reasoning" if self.is_reasoning(prompt) else None
        return [OutputParser(family, self._tokenizer, schemas, state) for _ in range(count)]

    def grammar(self, prompt: Sequence[int], options: ChatOptions, wanted: StructuredOutputs | None) -> str | None:
        """What the answer to a prompt has to follow: calls where they are demanded, else what is wanted, or calls; and
        for nothing but strict tools, calls that fit. (Those a model writes without marks cannot be told in time.)"""
        family, tools = self._family_for(options, wanted), options.usable_tools
        calls, ids = family.forced if tools else None, self._tokenizer.added_ids
        demanded = wanted is not None or options.must_call
        if not demanded:
            strict = any(tool.strict for tool in tools) and family.start == "content"
            if not strict or calls is None or not marks_calls(calls, ids):
                return None
        return chat_grammar(
            None if options.must_call else wanted,
            calls,
            tools,
            family=family,
            added_ids=ids,
            reasoning=self.is_reasoning(prompt),
            several=options.parallel_tool_calls and options.named_tool is None,
            free=not demanded,
        )

    def _family_for(self, options: ChatOptions, wanted: StructuredOutputs | None) -> Family:
        """The model's own; but where a grammar holds calls and it does not write their arguments as JSON, hermes."""
        constrained = options.must_call or (wanted is not None and options.usable_tools)
        if constrained and self.family.forced is None:
            return replace(HERMES, think=self.family.think)
        return self.family

    @property
    def control_ids(self) -> frozenset[int]:
        """Tokens with a meaning in the output, whatever the vocabulary's files say of them."""
        ids = self._tokenizer.added_ids
        marks = {*self.family.terminals, *(self.family.think or ())}
        return frozenset(ids[mark] for mark in marks if mark in ids)

    def is_reasoning(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt ends where the model is to think, as some templates open the reasoning themselves."""
        if self.family.think is None:
            return False
        tail = self._tokenizer.decode(prompt[-_TAIL:], skip_special=False)
        return tail.rstrip().endswith(self.family.think[0])
