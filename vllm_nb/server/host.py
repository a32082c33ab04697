"""What stands behind the routes: an engine that loads, serves, or has failed, and who is using it."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vllm_nb import progress
from vllm_nb.config import EngineConfig
from vllm_nb.errors import VllmNbError
from vllm_nb.server.errors import ApiError
from vllm_nb.weights.hub import ModelRepo, resolve

if TYPE_CHECKING:  # the engine brings torch, which is imported while the server already answers
    from vllm_nb.api import Engine
    from vllm_nb.outputs import GenerationOutput
    from vllm_nb.server.mcp_servers import McpServers

logger = logging.getLogger(__name__)

Status = Literal["loading", "ready", "failed"]


class InEngine(Protocol):
    """A request as the engine knows it: a stream, or embeddings."""

    @property
    def request_id(self) -> str: ...

    @property
    def output(self) -> "GenerationOutput": ...

    def abort(self) -> None: ...

    def cancel(self) -> None: ...


def load_engine(model: str, config: EngineConfig) -> "Engine":
    """The engine for what people call a model. Raises ModelLoadError."""
    path = resolve(ModelRepo.parse(model))  # first: a wrong name shows at once, importing torch takes seconds
    from vllm_nb.api import Engine

    return Engine(path, config)


class EngineHost:
    """Holds the engine of a server. Used from the event loop; only the loading runs on a thread of its own.

    names: what requests may call the model besides its own name, for example the text it was started with.
    idle_timeout: seconds without a request after which the server ends; None: never.
    """

    def __init__(self, load: "Callable[[], Engine]", *, names: tuple[str, ...] = (), idle_timeout: float | None = None):
        self.names = names
        self.idle_timeout = idle_timeout
        self.owner: tuple[int, float] | None = None  # pid and create time of the process whose end is also ours
        self.engine: Engine | None = None
        self.error: str | None = None  # why loading failed
        self.failure_told = False  # somebody has seen it in /health
        self.progress: progress.Report | None = None
        self.last_used = time.monotonic()
        self.started = time.time()
        self.on_finished: list[Callable[[GenerationOutput], None]] = []  # called with each prompt's output at its end
        self.mcp: McpServers | None = None  # whose tools requests may use
        self._load = load
        self._active: dict[str, Sequence[InEngine]] = {}

    @classmethod
    def ready(cls, engine: "Engine") -> "EngineHost":
        """A host of an engine that somebody else has built, and will close."""
        host = cls(lambda: engine)
        host.engine = engine
        return host

    # Loading

    def start_loading(self) -> threading.Thread:
        """Load on a daemon thread; `status` tells how it goes."""
        thread = threading.Thread(target=self._run_load, name="vllm-nb-load", daemon=True)
        thread.start()
        return thread

    def _run_load(self) -> None:
        remove = progress.add_sink(self._keep_progress)
        try:
            engine = self._load()
        except VllmNbError as error:
            self.error = str(error)
        except BaseException as error:  # also SystemExit and MemoryError: whoever waits must be told
            logger.exception("loading the model failed")
            self.error = f"loading the model failed: {type(error).__name__}: {error}"
        else:
            self.last_used = time.monotonic()
            self.engine = engine
            logger.info("%s is ready", engine.model_name)
        finally:
            remove()

    def _keep_progress(self, report: progress.Report) -> None:
        self.progress = report

    # State

    @property
    def status(self) -> Status:
        if self.error is not None or (self.engine is not None and self.engine.failure is not None):
            return "failed"
        return "ready" if self.engine is not None else "loading"

    @property
    def failure(self) -> str | None:
        """Why the status is "failed"."""
        if self.engine is not None and self.engine.failure is not None:
            return f"the engine has failed: {self.engine.failure!r}"
        return self.error

    @property
    def in_flight(self) -> int:
        return len(self._active)

    @property
    def idle_seconds(self) -> float:
        """Since the last request ended, or the model was loaded; 0 while anything runs."""
        return 0.0 if self._active or self.status == "loading" else time.monotonic() - self.last_used

    def require_engine(self, model: str | None = None) -> "Engine":
        """The engine, if it can serve `model`. Raises ApiError 503 or 404."""
        engine = self.engine
        if self.failure is not None:
            raise ApiError(503, self.failure, "engine_dead", retry_after=5)
        if engine is None:
            raise ApiError(503, f"the model is still loading{self._progress_text()}", "model_loading", retry_after=1)
        if model is not None and model != engine.model_name and model not in self.names:
            raise ApiError(
                404,
                f"model {model!r} is not served here; this is {engine.model_name!r} (LoRA adapters, which would be "
                "models of their own, are not built yet)",
                "model_not_found",
                param="model",
            )
        return engine

    def _progress_text(self) -> str:
        report = self.progress
        if report is None:
            return ""
        share = f", {report.done / report.total:.0%}" if report.total else ""
        return f" ({report.phase}{share})"

    def health(self) -> dict[str, Any]:
        """What /health says."""
        report = None if self.progress is None or self.status != "loading" else asdict(self.progress)
        return {
            "status": self.status,
            "error": self.failure,
            "progress": report,
            "model": None if self.engine is None else self.engine.model_name,
            "max_model_len": None if self.engine is None else self.engine.max_model_len,
            "requests": self.in_flight,
            "idle_s": round(self.idle_seconds, 3),
            "idle_timeout_s": self.idle_timeout,
            "owner_pid": self.owner[0] if self.owner else None,
            "uptime_s": round(time.time() - self.started, 3),
        }

    # Requests

    @contextmanager
    def using(self, request_id: str, streams: Sequence[InEngine]) -> Iterator[None]:
        """While a request is answered: it can be aborted by id, and counts as use. At the end nothing of it is left
        in the engine, however it ended."""
        self._active[request_id] = streams
        try:
            yield
        finally:
            del self._active[request_id]
            self.last_used = time.monotonic()
            for stream in streams:
                stream.cancel()
                for record in self.on_finished:
                    record(stream.output)

    def abort(self, request_id: str) -> bool:
        """End a request; its answer so far is completed with finish_reason "abort". False for an unknown id."""
        streams = self._active.get(request_id, ())
        for stream in streams:
            stream.abort()
        return bool(streams)

    def abort_all(self) -> None:
        for request_id in list(self._active):
            self.abort(request_id)
