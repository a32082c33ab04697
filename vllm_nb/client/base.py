"""What both clients share: whom they ask, how a request is written, and which exception a refusal becomes. No I/O."""

import difflib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from vllm_nb.chat_options import ChatOptions, Tool
from vllm_nb.errors import EngineDeadError, GenerationError, QueueFullError, RequestError, VllmNbError
from vllm_nb.messages import as_messages
from vllm_nb.sampling import SamplingParams, StructuredOutputs

if TYPE_CHECKING:
    from vllm_nb.client.schema import Shape

SHORT = 10.0  # seconds, for what an engine answers at once
ABORT = 2.0  # seconds; an interrupted user does not wait longer
_NO_QUOTA = "insufficient_quota"  # as OpenAI says it, with the status of a rate limit


@dataclass(frozen=True)
class Query:
    """One request, so that it can be sent and sent again.

    content: a conversation as OpenAI's dictionaries, or, for the model to continue it as it is, a text or token ids.
    params: fields of SamplingParams and, for a conversation, of ChatOptions; `model`; and `schema`, as Shape.of takes
    it. `tools` may hold Python functions.
    """

    content: list[dict[str, Any]] | str | list[int]
    params: Mapping[str, Any]
    wire: Mapping[str, Any] = field(repr=False)  # the same as the API has it
    shape: "Shape | None" = None  # how the answer's text becomes a value

    @classmethod
    def chat(cls, messages: Any, params: Mapping[str, Any]) -> "Query":
        """Raises RequestError for messages, TypeError and ValueError for params that can't be right."""
        shape, plain = _python_params(params)
        wire = _wire_params(plain, chat=True)
        return cls([_with_images(message.to_dict()) for message in as_messages(messages)], params, wire, shape)

    @classmethod
    def text(cls, prompt: str | list[int], params: Mapping[str, Any]) -> "Query":
        """As `chat`, without the chat template."""
        if not prompt:
            raise RequestError("the prompt is empty: give a text or token ids")
        shape, plain = _python_params(params)
        return cls(prompt, params, _wire_params(plain, chat=False), shape)

    @property
    def is_chat(self) -> bool:
        return isinstance(self.content, list) and isinstance(self.content[0], dict)

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.is_chat else "/v1/completions"

    def body(self, model: str, *, stream: bool, ours: bool) -> dict[str, Any]:
        """ours: the server is one of ours, which knows more fields than OpenAI's, and sends token ids."""
        body: dict[str, Any] = {"model": self.params.get("model") or model}
        body |= self.wire if ours else _standard(self.wire)
        if not self.is_chat:
            body = {"max_tokens": None} | body  # else OpenAI's 16
        elif "logprobs" in body:
            body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if ours:
            body["return_token_ids"] = True
        return body | {"messages" if self.is_chat else "prompt": self.content}


def _python_params(params: Mapping[str, Any]) -> "tuple[Shape | None, dict[str, Any]]":
    """What only Python can say, as what the API can."""
    plain = dict(params)
    schema = plain.pop("schema", None)
    if any(map(callable, plain.get("tools") or ())):
        from vllm_nb.client.tools import PythonTool

        plain["tools"] = [PythonTool(tool).tool if callable(tool) else tool for tool in plain["tools"]]
    if schema is None:
        return None, plain
    from vllm_nb.client.schema import Shape

    if plain.get("structured_outputs") is not None:
        raise ValueError("schema and structured_outputs say the same: give one of them")
    shape = Shape.of(schema)
    return shape, plain | {"structured_outputs": shape.outputs}


def _with_images(message: dict[str, Any]) -> dict[str, Any]:
    """A server need not be able to read our files: they are sent."""
    parts = message.get("content")
    for part in parts if isinstance(parts, list) else ():
        if part["type"] == "image_url":
            from vllm_nb.client.images import image_url

            part["image_url"] = {"url": image_url(part["image_url"]["url"])}
    return message


_SAMPLING = {f.name: f.default for f in fields(SamplingParams)}
_CHAT = {f.name: f.default for f in fields(ChatOptions)}


def _wire_params(params: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
    """The API's fields for those of SamplingParams and ChatOptions, checked before anything is sent."""
    known = _SAMPLING | _CHAT if chat else _SAMPLING
    for name in params:
        if name not in known and name != "model":
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise TypeError(f"unknown parameter {name!r}; {hint}")
    return _changed(SamplingParams, _SAMPLING, params) | (_chat_fields(params) if chat else {})


def _changed(kind: Any, defaults: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are not as they would be anyway."""
    given = {name: value for name, value in params.items() if name in defaults}
    checked = kind(**given)
    values = {name: getattr(checked, name) for name in given}
    return {name: _plain(value) for name, value in values.items() if value != defaults[name]}


def _chat_fields(params: Mapping[str, Any]) -> dict[str, Any]:
    wire = _changed(ChatOptions, _CHAT, params)
    template = dict(wire.pop("template_kwargs", {}))
    if "enable_thinking" in wire:
        template["enable_thinking"] = wire.pop("enable_thinking")
    return wire | ({"chat_template_kwargs": template} if template else {})


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return value.to_dict() if isinstance(value, StructuredOutputs | Tool) else value


def _standard(wire: Mapping[str, Any]) -> dict[str, Any]:
    """In OpenAI's fields, as far as they can say it."""
    structured = wire.get("structured_outputs")
    if not isinstance(structured, Mapping) or not structured.keys() & {"json", "json_object"}:
        return dict(wire)
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": structured.get("json")},
    }
    rest = {name: value for name, value in wire.items() if name != "structured_outputs"}
    return rest | {"response_format": schema if "json" in structured else {"type": "json_object"}}


class BaseClient:
    """Whom a client asks.

    url: without the /v1. token: bearer token, None where the server asks for none. name: for messages to people. model:
    what to ask for; None: whatever the server has. ours: whether it is an engine of this package; None: to be found
    out. Any other server is asked for OpenAI's fields only.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        name: str | None = None,
        model: str | None = None,
        ours: bool | None = None,
    ):
        self.url = url.rstrip("/").removesuffix("/v1")
        self.token = token
        self.name = name or self.url
        self._model = model
        self._ours = ours

    @classmethod
    def like(cls, other: "BaseClient") -> Self:
        """A client that asks the same server, by connections of its own."""
        return cls(other.url, other.token, name=other.name, model=other._model, ours=other._ours)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, name={self.name!r})"

    def _connection(self) -> dict[str, Any]:
        """Arguments of httpx's clients."""
        import httpx

        return {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {self.token}"} if self.token else {},
            "timeout": httpx.Timeout(None, connect=5.0),  # a queued request may wait long
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=30.0),
            "trust_env": False,  # a proxy of the environment must not see loopback traffic
            "verify": self.url.startswith("https:"),  # reading the certificates takes 0.1 s
        }

    # Answers

    def _payload(self, path: str, status: int, headers: Mapping[str, str], content: bytes) -> dict[str, Any]:
        """The object of a reply that is 200. Raises what `error_of` gives for any other."""
        if status in (404, 405) and path.startswith("/inspect"):
            raise VllmNbError(
                f"{self.name!r} at {self.url} has no {path}: only an engine of vllm_nb can do this, and this is "
                "another server"
            )
        if status != 200:
            raise self.error_of(status, headers, content)
        return payload(status, content)

    def _model_of(self, cards: Mapping[str, Any]) -> str:
        """The first model of /v1/models."""
        if self._model is None:
            self._model = str((cards.get("data") or [{}])[0].get("id", ""))
        return self._model

    # Errors

    def failure(self, error: Exception) -> VllmNbError:
        """For a request that httpx could not send, or whose answer it could not read."""
        import httpx

        if isinstance(error, httpx.TimeoutException):
            return EngineDeadError(f"engine {self.name!r} at {self.url} does not answer")
        if isinstance(error, UnicodeEncodeError):
            return RequestError(f"the request holds a lone surrogate, half a character: {error.object[:40]!r}")
        return self.gone(error)

    def gone(self, cause: Exception) -> EngineDeadError:
        """For a connection that was refused or broke."""
        return EngineDeadError(
            f"engine {self.name!r} at {self.url} is not running any more ({cause}): start it again with `%vllm start`, "
            "vllm_nb.start() or the same command; `%vllm ps` or `vllm-nb ps` shows what runs"
        )

    def error_of(self, status: int, headers: Mapping[str, str], content: bytes) -> VllmNbError:
        """The exception for a reply that is not 200."""
        wait = seconds_to_wait(headers.get("retry-after", ""))
        return self.error(status, payload(status, content).get("error"), wait)

    def error(self, status: int, details: Any, retry_after: float = 1.0) -> VllmNbError:
        """The exception for OpenAI's error object."""
        details = details if isinstance(details, Mapping) else {"message": details}
        message = str(details.get("message") or f"HTTP status {status}")
        if status == 401:
            return VllmNbError(f"engine {self.name!r} at {self.url} refuses the token: {message}")
        if status == 503 and details.get("code") == "engine_dead":
            return EngineDeadError(f"{message}; `%vllm start`, vllm_nb.start() or the same command starts a new engine")
        if status == 429 and _NO_QUOTA in (details.get("code"), details.get("type")):  # waiting doesn't help
            return VllmNbError(f"engine {self.name!r} at {self.url} has no quota left for this token: {message}")
        if status in (429, 503):
            return QueueFullError(message, retry_after)
        return GenerationError(message) if status >= 500 else RequestError(message)


def seconds_to_wait(retry_after: str) -> float:
    """From the header Retry-After, a number of seconds or a date (RFC 9110, 10.2.3); 1 where it says neither."""
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return float(retry_after) if re.fullmatch(r"\d{1,9}(\.\d*)?", retry_after, re.ASCII) else 1.0


def is_ours(health: Mapping[str, Any]) -> bool:
    """Whether a reply to /health is one of ours."""
    return "status" in health and "idle_s" in health


def payload(status: int, content: bytes) -> dict[str, Any]:
    """The object in a body; for anything else, an error shape that quotes its beginning."""
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    return {"error": {"message": f"HTTP status {status}: {content[:200].decode(errors='replace')}"}}
