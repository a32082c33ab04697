"""Every error a user can meet. Each message says what is wrong, where, and what to do next."""

NO_MODEL = "no model is named: give smollm2, org/name, a .gguf file or a folder"


class VllmNbError(Exception):
    """Base of the errors this package raises on purpose."""


class ModelLoadError(VllmNbError):
    """The model could not be found, read or understood (missing file, truncated GGUF, unknown architecture)."""


class RequestError(VllmNbError, ValueError):
    """One request cannot be served as asked (empty messages, prompt too long); others are not affected. HTTP 400."""


class ContextLengthError(RequestError):
    """A prompt is longer than the engine's context."""


class QueueFullError(VllmNbError):
    """The engine holds as many waiting requests as it may; try again after `retry_after` seconds. HTTP 503."""

    def __init__(self, message: str, retry_after: float = 1.0):
        super().__init__(message)
        self.retry_after = retry_after


class EngineDeadError(VllmNbError):
    """The engine has stopped, by `close()` or by a failure, whose message it carries. HTTP 503."""


class GenerationError(VllmNbError):
    """One request failed while it ran (for example NaN logits); the engine goes on serving the others. HTTP 500."""
