"""Messages to token ids by the model's own chat template, such that no message can pose as another turn."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.exceptions import SecurityError

from vllm_nb.chat_options import TEMPLATE_KWARGS
from vllm_nb.errors import ModelLoadError, RequestError
from vllm_nb.messages import ChatMessage, ToolCall
from vllm_nb.text.template_sandbox import TemplateEnvironment, render
from vllm_nb.text.tokenizer import Tokenizer
from vllm_nb.text.tool_prompt import with_tools_as_text

_KWARGS = ("tools", *TEMPLATE_KWARGS)
_MAX_MESSAGE = 1000  # characters of what a template says went wrong


class ChatTemplate:
    """A model's chat template, compiled. Threads may share it.

    source: Jinja, from the model's files; None for a base model, which has none. name: the model's, for messages.
    Raises ModelLoadError for a template that cannot be compiled.
    """

    def __init__(self, source: str | None, tokenizer: Tokenizer, name: str):
        self.source = source
        self._tokenizer = tokenizer
        self._name = name
        self._template = None if source is None else self._compile(source)
        self._reads = frozenset() if source is None else _variables(source)
        ends = (tokenizer.bos_id, *tokenizer.eos_ids[:1])
        texts = [tokenizer.token_text(i) if i is not None else "" for i in ends] + [""]
        self._tokens = {"bos_token": texts[0], "eos_token": texts[1]}

    def render(self, messages: list[ChatMessage], *, add_generation_prompt: bool = True, **kwargs: Any) -> list[int]:
        """The ids the model sees. add_generation_prompt: begin the assistant's turn at the end.

        kwargs: "tools" and those of TEMPLATE_KWARGS, passed to the template. Names of control tokens that the template
        writes become these tokens; in messages and kwargs they stay text. Tools are described in the system message
        where the template has no place for them.
        Raises RequestError when the template refuses the messages, and for a model without a template.
        """
        if self._template is None:
            raise RequestError(
                f"{self._name} is a base model without a chat template. Give it plain text to continue: "
                "Prompt(text=...) in Python, --raw on the command line and in notebooks, /v1/completions over HTTP"
            )
        unknown = [key for key in kwargs if key not in _KWARGS]
        if unknown:
            raise RequestError(f"chat templates take {', '.join(_KWARGS)}; not {', '.join(unknown)}")
        if not self.knows_tools and (kwargs.get("tools") or any(message.tool_calls for message in messages)):
            messages = with_tools_as_text(messages, kwargs.pop("tools", None) or ())
        variables = {
            **self._tokens,
            "tools": None,
            "documents": None,
            **{key: self._shielded(value) for key, value in kwargs.items()},
            "messages": [self._shielded(turn) for turn in self._turns(messages)],
            "add_generation_prompt": add_generation_prompt,
        }
        return self._tokenizer.encode_shielded(self._render(self._template, variables))

    @property
    def knows_tools(self) -> bool:
        """Whether the template itself tells the model what tools there are."""
        return "tools" in self._reads

    def _turns(self, messages: Sequence[ChatMessage]) -> Iterator[dict[str, Any]]:
        """Messages as templates expect them: plain text, arguments of calls as objects, the name beside a result."""
        names = {call.id: call.name for message in messages for call in message.tool_calls}
        for message in messages:
            role = message.role
            if role == "developer" and "developer" not in (self.source or ""):
                role = "system"
            turn: dict[str, Any] = {"role": role, "content": None if message.content is None else message.text}
            if message.tool_calls:
                turn["tool_calls"] = [_template_call(call) for call in message.tool_calls]
            if message.reasoning_content is not None:
                turn["reasoning_content"] = message.reasoning_content
            if message.tool_call_id is not None:
                turn["tool_call_id"] = message.tool_call_id
            name = message.name or names.get(message.tool_call_id or "")
            if name is not None:
                turn["name"] = name
            yield turn

    def _compile(self, source: str) -> jinja2.Template:
        try:
            return TemplateEnvironment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            problem = f"line {error.lineno}: {error.message}"
        except Exception as error:  # deep nesting: RecursionError, SyntaxError, MemoryError of the generated code
            problem = f"{type(error).__name__}: {error}"
        raise ModelLoadError(f"the chat template of {self._name} cannot be compiled: {problem}")

    def _render(self, template: jinja2.Template, variables: dict[str, Any]) -> str:
        try:
            return render(template, variables)
        except SecurityError as error:
            problem = f"was stopped: {error}"
        except jinja2.UndefinedError as error:
            problem = f"does not fit these messages: {error}"
        except jinja2.TemplateError as error:  # raise_exception: the template's own words
            problem = f"refuses these messages: {error}"
        except Exception as error:  # whatever an expression of the template raises
            problem = f"failed on these messages: {type(error).__name__}: {error}"
        raise RequestError(f"the chat template of {self._name} {problem[:_MAX_MESSAGE]}")

    def _shielded(self, value: Any) -> Any:
        """Plain data with all texts shielded. Raises RequestError for anything that is not JSON."""
        match value:
            case str():
                return self._tokenizer.shield(value)
            case None | bool() | int() | float():
                return value
            case list() | tuple():
                return [self._shielded(item) for item in value]
            case dict():
                return {self._shielded(key): self._shielded(item) for key, item in value.items()}
        raise RequestError(f"chat templates take plain data (as in JSON), not {type(value).__name__}")


def _template_call(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = call.arguments
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _variables(source: str) -> frozenset[str]:
    """What a template reads and does not set itself."""
    return frozenset(meta.find_undeclared_variables(TemplateEnvironment().parse(source)))
