"""How one request is sampled. Every bound is checked here, once, and nowhere else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_STOP = 16
MAX_STOP_CHARS = 1024
MAX_LOGIT_BIAS = 1024


def _check_number(name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    kind = "a whole number" if whole else "a number"
    ok = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not ok or not low <= value <= high:  # NaN is in no range
        limits = f"from {low:g} to {high:g}" if high < 2**31 - 1 else f"of at least {low:g}"
        raise ValueError(f"{name} must be {kind} {limits}, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling of one request. `None` means: as the model's generation_config says, else the neutral value.

    temperature: 0 is greedy. top_k: 0 keeps all. top_p, min_p: nucleus and relative cut-off, after temperature.
    repetition_penalty: divides positive and multiplies negative logits of tokens seen in prompt and output
    (Keskar et al. 2019). frequency_penalty, presence_penalty: subtracted per occurrence / once, output only (OpenAI).
    seed: the same seed gives the same text whatever else runs; None draws one. logit_bias: token id -> addend.
    stop: texts that end the output, not returned. stop_token_ids: ids that end it, not returned as text.
    max_tokens: None means up to the context's end. min_tokens: no stop before that many. ignore_eos: run to max_tokens.
    logprobs: alternatives per output token, 0 gives the chosen one alone. prompt_logprobs: the same over the prompt.
    n: independent answers to one prompt, sharing its cache.

    Raises ValueError naming the field, the value and the range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] = field(default=())
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1

    def __post_init__(self) -> None:
        for name, low, high, whole in _BOUNDS:
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                _check_number(name, value, low, high, whole)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens must be at most max_tokens ({self.max_tokens}), not {self.min_tokens}")
        object.__setattr__(self, "stop", _checked_stop(self.stop))
        object.__setattr__(self, "stop_token_ids", _checked_token_ids(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    def with_defaults(self, defaults: "SamplingParams") -> "SamplingParams":
        """This, with every None among temperature, top_k, top_p, min_p and repetition_penalty taken from `defaults`."""
        filled = {name: getattr(defaults, name) for name in _MODEL_DEFAULTS if getattr(self, name) is None}
        return replace(self, **filled) if filled else self


# The fields a model's generation_config may set, with the value that changes nothing.
_MODEL_DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
NEUTRAL_DEFAULTS: dict[str, Any] = dict(_MODEL_DEFAULTS)

_WHOLE = 2**31 - 1
_BOUNDS = (
    ("temperature", 0, 100, False),
    ("top_k", 0, _WHOLE, True),
    ("top_p", 1e-6, 1, False),
    ("min_p", 0, 1, False),
    ("repetition_penalty", 0.01, 100, False),
    ("frequency_penalty", -2, 2, False),
    ("presence_penalty", -2, 2, False),
    ("seed", -(2**63), 2**64 - 1, True),
    ("max_tokens", 1, _WHOLE, True),
    ("min_tokens", 0, _WHOLE, True),
    ("logprobs", 0, MAX_LOGPROBS, True),
    ("prompt_logprobs", 0, MAX_LOGPROBS, True),
    ("n", 1, MAX_CHOICES, True),
)
_OPTIONAL = {f.name for f in fields(SamplingParams) if f.default is None}


def _checked_stop(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(texts) > MAX_STOP:
        raise ValueError(f"stop must hold at most {MAX_STOP} texts, not {len(texts)}")
    for text in texts:
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARS:
            raise ValueError(f"stop must hold texts of 1 to {MAX_STOP_CHARS} characters, not {str(text)[:40]!r}")
    return texts


def _checked_token_ids(ids: Sequence[int]) -> tuple[int, ...]:
    ids = tuple(ids)
    if len(ids) > MAX_LOGIT_BIAS:
        raise ValueError(f"stop_token_ids must hold at most {MAX_LOGIT_BIAS} ids, not {len(ids)}")
    for token_id in ids:
        _check_number("stop_token_ids", token_id, 0, _WHOLE, whole=True)
    return ids


def _checked_bias(bias: Mapping[int, float] | None) -> dict[int, float] | None:
    if not bias:
        return None
    if len(bias) > MAX_LOGIT_BIAS:
        raise ValueError(f"logit_bias must hold at most {MAX_LOGIT_BIAS} tokens, not {len(bias)}")
    checked = {}
    for token_id, value in bias.items():
        if isinstance(token_id, str) and token_id.isdecimal() and len(token_id) < 11:  # a key of JSON
            token_id = int(token_id)
        _check_number("logit_bias token id", token_id, 0, _WHOLE, whole=True)
        _check_number(f"logit_bias[{token_id}]", value, -100, 100)
        checked[token_id] = float(value)
    return checked
