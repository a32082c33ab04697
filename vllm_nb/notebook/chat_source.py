"""Where a chat's answers come from: an engine behind HTTP, or one in this process. The same few calls for both."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

from vllm_nb.client.http import EngineClient
from vllm_nb.errors import VllmNbError
from vllm_nb.outputs import StreamItem, Timings, Usage
from vllm_nb.progress import Report
from vllm_nb.sampling import SamplingParams

Messages = list[dict[str, Any]]
OnProgress = Callable[[Report | None], None]

_SAMPLING = {f.name for f in fields(SamplingParams)}


class Stream(AbstractContextManager["Stream"], Iterator[StreamItem], Protocol):
    """An answer as it comes; leaving it ends the request."""


@dataclass
class Answer:
    """A request that is about to be sent. stream: enter and iterate. abort: end it from any thread, once it is entered,
    so that the stream comes to its end in order. details: fields of Turn, for when it has. paused: whether the engine
    stands still, as far as it tells; from any thread."""

    stream: Stream
    abort: Callable[[], None]
    details: Callable[[], dict[str, Any]]
    paused: Callable[[], bool]


class Source(Protocol):
    """Makes answers. name: for people."""

    @property
    def name(self) -> str: ...

    def ask(self, messages: Messages, params: Mapping[str, Any], on_progress: OnProgress) -> Answer:
        """on_progress: told how a model loads that has to be loaded first, and None when it is. Raises for messages or
        params that cannot be right."""


class ClientSource:
    """An engine behind HTTP. find: which one; called for each answer, for `%vllm use` may choose another."""

    def __init__(self, find: Callable[[OnProgress], EngineClient]):
        self._find = find
        self.name = ""

    def ask(self, messages: Messages, params: Mapping[str, Any], on_progress: OnProgress) -> Answer:
        client = self._find(on_progress)
        on_progress(None)
        self.name = client.model
        stream = client.stream(messages, **params)

        def abort() -> None:
            if not (stream.request_id and client.abort(stream.request_id)):
                stream.abort()  # a server that knows no abort by id sees the hang-up

        def details() -> dict[str, Any]:
            completion = stream.completion
            timings = None if completion.timings is None else asdict(completion.timings)
            return {"model": completion.model, "usage": _usage(completion.usage), "timings": timings}

        def paused() -> bool:
            with suppress(VllmNbError):  # another server than ours may not tell
                return bool(client.state().get("paused"))
            return False

        return Answer(stream, abort, details, paused)


class EngineSource:
    """An Engine of this process. (By its methods: its class would bring torch.)"""

    def __init__(self, engine: Any):
        self._engine = engine
        self.name = str(engine.model_name)

    def ask(self, messages: Messages, params: Mapping[str, Any], on_progress: OnProgress) -> Answer:
        sampling = SamplingParams(**{name: value for name, value in params.items() if name in _SAMPLING})
        options = {name: value for name, value in params.items() if name not in _SAMPLING}
        stream = self._engine.generate_stream(sampling, messages, **options)

        def details() -> dict[str, Any]:
            usage = stream.output.usage
            timings = _timings(stream.output.timings, usage.completion_tokens)
            return {"model": self.name, "usage": _usage(usage), "timings": timings}

        return Answer(stream, lambda: self._engine.abort(stream.request_id), details, lambda: self._engine.paused)


def source_of(engine: Any) -> Source:
    """For a client or an engine of this process. Raises TypeError for anything else."""
    if isinstance(engine, EngineClient):
        return ClientSource(lambda on_progress: engine)
    if hasattr(engine, "generate_stream") and hasattr(engine, "model_name"):
        return EngineSource(engine)
    raise TypeError(
        f"chat() takes an engine's name or URL, a client (vllm_nb.connect) or an Engine, not {type(engine).__name__}"
    )


def _usage(usage: Usage | None) -> dict[str, int] | None:
    """As a Turn has it."""
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
    }


def _timings(timings: Timings, tokens: int) -> dict[str, float | None]:
    """Seconds since the request arrived, as the server has them."""

    def since(moment: float | None) -> float | None:
        return None if moment is None else moment - timings.arrived

    return {
        "queued_s": since(timings.scheduled),
        "ttft_s": timings.ttft,
        "decode_tokens_per_s": timings.decode_rate(tokens),
        "total_s": since(timings.finished),
    }
