"""What the assistant said in one turn, where a dialect has it in pieces."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from vllm_nb.messages import ChatMessage, ToolCall


@dataclass
class Said:
    """The assistant's turn so far."""

    text: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    def message(self) -> Iterator[ChatMessage]:
        """The turn, where there is anything in it."""
        if self.text or self.thoughts or self.calls:
            text = "".join(self.text) if self.text or not self.calls else None
            yield ChatMessage("assistant", text, tuple(self.calls), reasoning_content="".join(self.thoughts) or None)
