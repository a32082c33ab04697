"""What may be asked of /v1/responses, and what it means in our words.

Unknown fields are ignored, as OpenAI does; what would change the answer and cannot be honoured is refused.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vllm_nb.errors import RequestError
from vllm_nb.sampling import SamplingParams
from vllm_nb.server.errors import ApiError
from vllm_nb.server.responses_items import Item

LOGPROBS = "message.output_text.logprobs"  # what `include` calls them
_OURS = ("top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "stop", "ignore_eos")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (None, False),
    "conversation": (None,),
    "prompt": (None,),
    "truncation": (None, "disabled"),
}


class Reasoning(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    effort: str | None = None
    summary: str | None = None


class TextConfig(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(BaseModel):
    """POST /v1/responses. The fields of _OURS, enable_thinking and mcp are ours."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = None
    input: str | list[Item]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    background: bool | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    enable_thinking: bool | None = None
    mcp: str | None = None

    def check(self) -> None:
        """Raises ApiError for a field that is not supported."""
        for name, neutral in _NEUTRAL.items():
            if getattr(self, name) not in neutral:
                raise ApiError(400, f"{name} is not supported here: leave it out", "unsupported_parameter", param=name)

    def sampling_params(self) -> SamplingParams:
        """Raises RequestError naming the field."""
        values = {name: getattr(self, name) for name in ("temperature", "top_p", *_OURS)}
        values |= {"max_tokens": self.max_output_tokens, "logprobs": self._logprobs()}
        values["structured_outputs"] = _structure(self.text.format if self.text else None)
        try:
            return SamplingParams(**{name: value for name, value in values.items() if value is not None})
        except ValueError as error:
            message = str(error).replace("max_tokens", "max_output_tokens")
            raise RequestError(message.replace("logprobs must", "top_logprobs must")) from None

    def options(self) -> dict[str, Any]:
        """Fields of ChatOptions."""
        tools = [_tool(tool) for tool in self.tools or ()]
        choice: Any = self.tool_choice
        if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
            allowed = [tool.get("name") for tool in choice.get("tools") or () if isinstance(tool, dict)]
            tools = [tool for tool in tools if tool["name"] in allowed]
            choice = choice.get("mode")
        options: dict[str, Any] = {"tools": tools, "tool_choice": choice, "enable_thinking": self.enable_thinking}
        if self.reasoning is not None:
            options["reasoning_effort"] = self.reasoning.effort
        if self.parallel_tool_calls is not None:
            options["parallel_tool_calls"] = self.parallel_tool_calls
        return options

    def echo(self) -> dict[str, Any]:
        """What a response repeats of its request."""
        return {
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": self.reasoning and self.reasoning.effort, "summary": None},
            "store": self.store is not False,
            "temperature": self.temperature,
            "text": {"format": (self.text and self.text.format) or {"type": "text"}},
            "tool_choice": self.tool_choice or "auto",
            "tools": self.tools or [],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": "disabled",
            "user": self.user,
        }

    def _logprobs(self) -> int | None:
        asked = self.top_logprobs is not None or LOGPROBS in (self.include or ())
        return (self.top_logprobs or 0) if asked else None


def _structure(form: dict[str, Any] | None) -> dict[str, Any] | None:
    match form:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"json_object": True}
        case {"type": "json_schema", "schema": dict(schema)}:
            return {"json": schema}
    raise RequestError(
        'text.format must be {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "name", "schema"}'
    )


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function" or not isinstance(tool.get("name"), str):
        raise RequestError(
            f"tools: {str(tool.get('type'))[:80]!r} is not supported here; give functions, as "
            '{"type": "function", "name", "parameters"}'
        )
    return tool
