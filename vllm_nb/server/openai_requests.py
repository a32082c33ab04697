"""What may be asked of the OpenAI routes. Types are checked here; the range of sampling numbers in SamplingParams.

Fields that would change the answer and cannot be honoured are refused.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

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

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # field -> the values that ask for nothing

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
        for name, neutral in self.unsupported.items():
            if getattr(self, name) not in neutral:
                raise ApiError(400, f"{name} is not supported yet: leave it out", "unsupported_parameter", param=name)
        given = {name: value for name, value in self._values().items() if value is not None}
        try:
            return SamplingParams(**given)
        except ValueError as error:
            raise RequestError(str(error)) from None

    def _values(self) -> dict[str, Any]:
        """Fields of SamplingParams; None for not given."""
        values = {name: getattr(self, name) for name in _PASSED_ON}
        return values | {"logprobs": self._logprobs(), "max_tokens": self._max_tokens()}


_PASSED_ON = (
    *("n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"),
    *("seed", "logit_bias", "stop", "stop_token_ids", "min_tokens", "ignore_eos", "prompt_logprobs", "priority"),
)
FREE_TEXT: dict[str, tuple[Any, ...]] = {"response_format": (None, {"type": "text"}), "structured_outputs": (None, {})}


class ChatRequest(GenerateRequest):
    """POST /v1/chat/completions."""

    unsupported: ClassVar = {**FREE_TEXT, "tools": (None, []), "functions": (None, []), "modalities": (None, ["text"])}

    messages: list[dict[str, Any]] = Field(max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: list[dict[str, Any]] | None = None
    functions: list[dict[str, Any]] | None = None
    modalities: list[str] | None = None

    def _max_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def _logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", "invalid_value", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None
