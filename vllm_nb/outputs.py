"""What a request gives back: plain data, the same in process and over HTTP."""

from dataclasses import dataclass, field

from vllm_nb.messages import ChatMessage, ToolCall

LOWEST_LOGPROB = -9999.0  # in JSON, which has no infinity; OpenAI's own stand-in


@dataclass(slots=True)
class TokenLogprob:
    """The log-probability of one token under the model itself: before penalties, temperature and filters.

    entropy: of the distribution, nats. log_mass: before top_p and min_p, each token that top_k leaves is drawn with
    exp(logprob / temperature - log_mass). Both where alternatives were asked for; no log_mass where the likeliest is
    taken, or penalties or logit_bias alter the logits.
    """

    token_id: int
    text: str
    logprob: float
    rank: int | None = None  # 1: the likeliest; None where unknown
    top: list["TokenLogprob"] = field(default_factory=list)  # the likeliest alternatives, best first
    entropy: float | None = None
    log_mass: float | None = None


@dataclass(slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0  # over all choices
    cached_tokens: int = 0  # prompt tokens found in the prefix cache, so not computed
    reasoning_tokens: int = 0  # completion tokens the model spent on reasoning

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class Timings:
    """Seconds on the engine's monotonic clock; None: not reached."""

    arrived: float = 0.0
    scheduled: float | None = None  # first put into a batch
    first_token: float | None = None
    finished: float | None = None

    @property
    def ttft(self) -> float | None:
        """Time to first token, from arrival."""
        return None if self.first_token is None else self.first_token - self.arrived

    def decode_rate(self, completion_tokens: int) -> float | None:
        """Tokens a second after the first one; None for a single token."""
        if self.first_token is None or self.finished is None or completion_tokens < 2:
            return None
        return (completion_tokens - 1) / max(self.finished - self.first_token, 1e-9)


@dataclass(slots=True)
class ToolCallDelta:
    """A piece of a tool call: the first of each has id and name, all have the next piece of the arguments' JSON.

    index: among the calls of the choice. A call that turns out malformed cannot be taken back from a stream: its text
    follows as content, and it is not in the choice's `tool_calls`.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class ToolRun:
    """A call that the server has executed itself, between two turns of the model. server: where the tool is from."""

    call: ToolCall
    server: str
    output: str
    is_error: bool = False


@dataclass(slots=True)
class Choice:
    """One of the `n` answers. finish_reason: stop, tool_calls (it ended after calls), length, abort or error;
    stop_reason: the text or id that hit, of those asked for. reasoning and tool_calls are not part of the text."""

    index: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_runs: list[ToolRun] = field(default_factory=list)  # calls that the server has executed on the way

    @property
    def message(self) -> ChatMessage:
        """The answer as a turn, to go on with the conversation."""
        text = self.text if self.text or not self.tool_calls else None
        return ChatMessage("assistant", text, tuple(self.tool_calls), reasoning_content=self.reasoning or None)


class FirstChoice:
    """What an answer says of the first of its choices, which mostly is the only one."""

    __slots__ = ()
    choices: list[Choice]

    @property
    def reasoning(self) -> str:
        """What the model thought before it answered; not part of the text."""
        return self.choices[0].reasoning

    @property
    def tool_calls(self) -> list[ToolCall]:
        return self.choices[0].tool_calls

    @property
    def message(self) -> ChatMessage:
        """The answer as a turn, to go on with the conversation."""
        return self.choices[0].message

    @property
    def token_ids(self) -> list[int]:
        return self.choices[0].token_ids

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        return self.choices[0].logprobs

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason


@dataclass(slots=True)
class GenerationOutput(FirstChoice):
    """A finished request. The single-answer accessors speak of the first choice."""

    request_id: str
    choices: list[Choice]
    usage: Usage
    timings: Timings
    prompt_token_ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None  # first entry None: nothing predicts the first token
    error: str | None = None  # why it failed, where several were asked for at once; alone it raises instead

    @property
    def decode_output(self) -> str:
        return self.choices[0].text

    @property
    def prompt_length(self) -> int:
        return self.usage.prompt_tokens

    @property
    def decoded_length(self) -> int:
        return self.usage.completion_tokens


@dataclass(slots=True)
class StreamItem:
    """A piece of one choice. The last item of a choice has `finish_reason`; the last of the request also has `usage`
    and `timings`. `text` may be empty (half a character, or text held back that may become a stop string); `reasoning`
    and `tool_calls` are what else the model said. What an item has of these was said in this order: reasoning, text,
    tool calls."""

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None  # on the first item, when asked for
    usage: Usage | None = None
    timings: Timings | None = None
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    tool_runs: list[ToolRun] = field(default_factory=list)
