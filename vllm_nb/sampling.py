"""How one request is sampled. Every bound is checked here, once, and nowhere else."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_STOP = 16
MAX_STOP_CHARS = 1024
MAX_LOGIT_BIAS = 1024
MAX_GRAMMAR_CHARS = 256 * 1024  # of a JSON schema, a regular expression, a grammar
MAX_GRAMMAR_DEPTH = 64  # levels of a JSON schema, of brackets in the others
MAX_ALTERNATIVES = 1024


def _check_number(name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    kind = "a whole number" if whole else "a number"
    ok = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not ok or not low <= value <= high:  # NaN is in no range
        if high < 2**31 - 1:
            limits = f"from {low:g} to {high:g}"
        else:
            limits = f"of at most {high:,}" if ok and value > high else f"of at least {low:,}"
        raise ValueError(f"{name} must be {kind} {limits}, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """What the output must look like; exactly one of these.

    json: a JSON schema, as a dictionary, its text, or True for any value. json_object: any JSON object. regex: a
    regular expression (the Rust crate's syntax) for the whole output. choice: one of these texts. grammar: in Lark's
    syntax as llguidance reads it, with a rule `start`.

    Raises ValueError naming the field. What these limits let through but is wrong or too costly, the engine refuses.
    """

    json: Mapping[str, Any] | str | bool | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = [f.name for f in fields(self) if getattr(self, f.name) not in (None, False)]
        if len(given) != 1:
            found = f"not {' and '.join(given)}" if given else "but has none"
            raise ValueError(f"structured_outputs must have one of {', '.join(f.name for f in fields(self))}; {found}")
        object.__setattr__(self, "json", _checked_schema(self.json))
        object.__setattr__(self, "choice", _checked_choice(self.choice))
        if self.json_object not in (None, False, True):
            raise ValueError(f"structured_outputs.json_object must be true, not {self.json_object!r}")
        for name in ("regex", "grammar"):
            _check_brackets(f"structured_outputs.{name}", getattr(self, name))

    @classmethod
    def from_any(cls, value: "StructuredOutputs | Mapping[str, Any]") -> "StructuredOutputs":
        """A StructuredOutputs, or its fields as a dictionary."""
        if isinstance(value, cls):
            return value
        known = [f.name for f in fields(cls)]
        if not isinstance(value, Mapping):
            raise ValueError(f"structured_outputs must be an object with one of {', '.join(known)}, not {value!r}")
        unknown = [str(name) for name in value if name not in known]
        if unknown:
            raise ValueError(f"structured_outputs must have one of {', '.join(known)}; not {', '.join(unknown)[:80]}")
        return cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """The one field that is given."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) not in (None, False)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling of one request. `None` means: as the model's generation_config says, else the neutral value.

    temperature: 0 is greedy. top_k: 0 or -1 keeps all. top_p, min_p: nucleus and relative cut-off, after temperature.
    repetition_penalty: divides positive and multiplies negative logits of tokens seen in prompt and output
    (Keskar et al. 2019). frequency_penalty, presence_penalty: subtracted per occurrence / once, output only (OpenAI).
    seed: the same seed gives the same text whatever else runs; None or -1 draws one. logit_bias: token id -> addend.
    stop: texts that end the output, not returned. stop_token_ids: ids that end it, not returned as text.
    max_tokens: None means up to the context's end. min_tokens: no stop before that many. ignore_eos: run to max_tokens.
    logprobs: alternatives per output token, 0 gives the chosen one alone. prompt_logprobs: the same over the prompt.
    n: independent answers to one prompt, sharing its cache. priority: whose is lower runs earlier, and is preempted
    later. structured_outputs: what the output must look like, as StructuredOutputs or its fields; of a chat's answer,
    the part after the reasoning.

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
    priority: int = 0
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        for name, low, high, whole in BOUNDS:
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                _check_number(name, value, low, high, whole)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens must be at most max_tokens ({self.max_tokens}), not {self.min_tokens}")
        for name, means in (("top_k", 0), ("seed", None)):
            if getattr(self, name) == -1:
                object.__setattr__(self, name, means)
        object.__setattr__(self, "stop", _checked_stop(self.stop))
        object.__setattr__(self, "stop_token_ids", _checked_token_ids(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        if self.structured_outputs is not None:
            object.__setattr__(self, "structured_outputs", StructuredOutputs.from_any(self.structured_outputs))

    def with_defaults(self, defaults: "SamplingParams") -> "SamplingParams":
        """This, with every None among temperature, top_k, top_p, min_p and repetition_penalty taken from `defaults`."""
        filled = {name: getattr(defaults, name) for name in _MODEL_DEFAULTS if getattr(self, name) is None}
        return replace(self, **filled) if filled else self

    def distribution(self) -> dict[str, float]:
        """What shapes the distribution that tokens are drawn from: the fields that a model's makers may advise on."""
        return {name: getattr(self, name) for name in _MODEL_DEFAULTS}


# The fields a model's generation_config may set, with the value that changes nothing.
_MODEL_DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
NEUTRAL_DEFAULTS: dict[str, Any] = dict(_MODEL_DEFAULTS)

_WHOLE = 2**31 - 1
BOUNDS = (
    ("temperature", 0, 100, False),
    ("top_k", -1, _WHOLE, True),
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
    ("priority", -(2**31), 2**31 - 1, True),
)
_OPTIONAL = {f.name for f in fields(SamplingParams) if f.default is None}


def _checked_stop(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    if not isinstance(stop, str | Iterable | None):
        raise ValueError(f"stop must be a text or a list of texts, not {stop!r}")
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(texts) > MAX_STOP:
        raise ValueError(f"stop must hold at most {MAX_STOP} texts, not {len(texts)}")
    for text in texts:
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARS:
            raise ValueError(f"stop must hold texts of 1 to {MAX_STOP_CHARS} characters, not {str(text)[:40]!r}")
    return texts


def _checked_token_ids(ids: Sequence[int] | None) -> tuple[int, ...]:
    if not isinstance(ids, Iterable | None):
        raise ValueError(f"stop_token_ids must be a list of token ids, not {ids!r}")
    ids = tuple(ids or ())
    if len(ids) > MAX_LOGIT_BIAS:
        raise ValueError(f"stop_token_ids must hold at most {MAX_LOGIT_BIAS} ids, not {len(ids)}")
    for token_id in ids:
        _check_number("stop_token_ids", token_id, 0, _WHOLE, whole=True)
    return ids


def _checked_bias(bias: Mapping[int, float] | None) -> dict[int, float] | None:
    if not bias:
        return None
    if not isinstance(bias, Mapping):
        raise ValueError(f"logit_bias must be an object of token ids and numbers, not {bias!r}")
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


def _checked_schema(schema: Any) -> Any:
    """The schema as a dictionary; {} for any value."""
    if schema is None or schema is False:
        return None
    if isinstance(schema, str):
        if len(schema) > MAX_GRAMMAR_CHARS:
            raise ValueError(f"structured_outputs.json must have at most {MAX_GRAMMAR_CHARS:,} characters")
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"structured_outputs.json must be a JSON schema: {error}") from None
    if schema is True:
        return {}
    if not isinstance(schema, Mapping):
        raise ValueError(f"structured_outputs.json must be a JSON schema, an object, not {str(schema)[:40]!r}")
    check_plain("structured_outputs.json", schema)
    return dict(schema)


def check_plain(name: str, value: Any) -> None:
    """Raises ValueError for a JSON schema or the like that is too deep, too large, or no plain data. Not recursive."""
    level, size = [value], 0
    for _ in range(MAX_GRAMMAR_DEPTH):
        below: list[Any] = []
        for item in level:
            match item:
                case Mapping():
                    below += [*item.keys(), *item.values()]
                case list() | tuple():
                    below += item
                case str():
                    size += len(item)
                case None | bool() | int() | float():
                    pass
                case _:
                    raise ValueError(f"{name} must be plain data, as in JSON, not {type(item).__name__}")
            size += 1
        if size + len(below) > MAX_GRAMMAR_CHARS:
            raise ValueError(f"{name} must have at most {MAX_GRAMMAR_CHARS:,} characters")
        if not below:
            return
        level = below
    raise ValueError(f"{name} must be at most {MAX_GRAMMAR_DEPTH} levels deep")


def _checked_choice(choice: Sequence[str] | None) -> tuple[str, ...] | None:
    if choice is None:
        return None
    texts = tuple(choice) if isinstance(choice, list | tuple) else ()
    if not 1 <= len(texts) <= MAX_ALTERNATIVES or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"structured_outputs.choice must be a list of 1 to {MAX_ALTERNATIVES:,} texts, none empty")
    if sum(map(len, texts)) > MAX_GRAMMAR_CHARS:
        raise ValueError(f"structured_outputs.choice must have at most {MAX_GRAMMAR_CHARS:,} characters in all")
    return texts


def _check_brackets(name: str, text: Any) -> None:
    """Compilers of regular expressions and grammars recurse into brackets. (Escaped ones count, too.)"""
    if text is None:
        return
    if not isinstance(text, str) or not 1 <= len(text) <= MAX_GRAMMAR_CHARS:
        raise ValueError(f"{name} must be a text of 1 to {MAX_GRAMMAR_CHARS:,} characters")
    depth = 0
    for char in text:
        if char in "([{":
            depth += 1
            if depth > MAX_GRAMMAR_DEPTH:
                raise ValueError(f"{name} must have at most {MAX_GRAMMAR_DEPTH} brackets within one another")
        elif char in ")]}":
            depth = max(0, depth - 1)
