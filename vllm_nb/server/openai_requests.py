"""What may be asked of the OpenAI routes. Types are checked here; the range of sampling numbers in SamplingParams.

Fields that would change the answer and cannot be honoured are refused.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vllm_nb.errors import RequestError
from vllm_nb.sampling import MAX_LOGPROBS, SamplingParams
from vllm_nb.server.errors import ApiError
from vllm_nb.server.request_model import RequestModel

MAX_MESSAGES = 10_000

TokenIds = list[int]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None


class GenerateRequest(RequestModel):
    """What chat and completion requests share. null counts as not given."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: TokenIds | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: int | None = None
    priority: int | None = None
    user: str | None = None  # for the client's own records
    return_token_ids: bool = False  # ours, as in vLLM: token ids beside every text
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def _logprobs(self) -> int | None:
        raise NotImplementedError

    def _max_tokens(self) -> int | None:
        return self.max_tokens

    def sampling_params(self) -> SamplingParams:
        """Raises RequestError naming the field, or ApiError for one that cannot be honoured."""
        self._refuse_unserved()
        given = {name: value for name, value in self._values().items() if value is not None}
        try:
            return SamplingParams(**given)
        except ValueError as error:
            raise RequestError(str(error)) from None

    def _refuse_unserved(self) -> None:
        """An answer that is not as it was asked for would be worse than none."""
        for name, value in (self.model_extra or {}).items():
            harmless, instead = _UNSERVED.get(name, (value, ""))
            if value is not None and value != harmless:
                raise ApiError(400, f"{name} is not served: {instead}", "unsupported_parameter", param=name)

    def _values(self) -> dict[str, Any]:
        """Fields of SamplingParams; None for not given."""
        values = {name: getattr(self, name) for name in _PASSED_ON}
        values |= {"logprobs": self._logprobs(), "max_tokens": self._max_tokens()}
        return values | {"structured_outputs": self._structured_outputs()}

    def _structured_outputs(self) -> dict[str, Any] | None:
        """What either of the two fields asks for, as fields of StructuredOutputs."""
        if not self.response_format:
            return self.structured_outputs or None
        if self.structured_outputs:
            raise ApiError(
                400,
                "response_format and structured_outputs say the same: give one of them",
                "invalid_value",
                param="response_format",
            )
        match self.response_format:
            case {"type": "text"}:
                return None
            case {"type": "json_object"}:
                return {"json_object": True}
            case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
                return {"json": schema}
        raise ApiError(
            400,
            'response_format must be {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", '
            '"json_schema": {"name": ..., "schema": {...}}}',
            "invalid_value",
            param="response_format",
        )


# What OpenAI or vLLM has and this server has not: (the value that changes nothing, what to do instead)
_UNSERVED: dict[str, tuple[Any, str]] = {
    "functions": ([], "give tools instead"),
    "function_call": ("none", "give tool_choice instead"),
    "continue_final_message": (False, "an answer cannot be begun for the model here; /v1/completions continues a text"),
    "add_generation_prompt": (True, "the assistant's turn is always begun; /v1/completions takes any text"),
    "chat_template": ("", "the model's own template is used; /v1/completions takes any text"),
    "bad_words": ([], "give logit_bias instead"),
    "allowed_token_ids": ([], "give structured_outputs instead"),
    "include_stop_str_in_output": (False, "the text that ended the answer is its stop_reason"),
    "truncate_prompt_tokens": (-1, "shorten the prompt yourself; /tokenize counts its tokens"),
    "use_beam_search": (False, "answers are drawn; best_of gives the likeliest of several"),
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar"), (None, "give structured_outputs instead")
    ),
}
_PASSED_ON = (
    *("n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"),
    *("seed", "logit_bias", "stop", "stop_token_ids", "min_tokens", "ignore_eos", "prompt_logprobs", "priority"),
)


class ChatRequest(GenerateRequest):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    modalities: list[str] | None = None
    mcp: str | None = None  # ours: what becomes of the tools of MCP servers

    def options(self) -> dict[str, Any]:
        """Fields of ChatOptions. Raises ApiError for fields that are not served."""
        if self.modalities not in (None, [], ["text"]):
            raise ApiError(
                400, "modalities must be ['text']: only text is given", "unsupported_parameter", param="modalities"
            )
        given = {name: value for name in _OPTIONS if (value := getattr(self, name)) is not None}
        template = dict(self.chat_template_kwargs or {})
        if "enable_thinking" in template:
            given.setdefault("enable_thinking", template.pop("enable_thinking"))
        return given | {"template_kwargs": template}

    def _max_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def _logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", "invalid_value", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


_OPTIONS = (
    *("tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "enable_thinking", "include_reasoning"),
    "documents",
)
