"""Every failure as its dialect has it: OpenAI's {"error": {"message", "type", "param", "code"}}, or Anthropic's."""

import json
import logging
import math
import re
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from vllm_nb.errors import ContextLengthError, EngineDeadError, QueueFullError, RequestError, VllmNbError

logger = logging.getLogger(__name__)


class ApiError(VllmNbError):
    """A failure with an HTTP status of its own. `code` is for programs, the message for people."""

    def __init__(self, status: int, message: str, code: str, *, param: str | None = None, retry_after: float = 0):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def response(self, path: str = "") -> JSONResponse:
        """In the shape of the dialect that `path` belongs to."""
        headers = {"Retry-After": str(math.ceil(self.retry_after))} if self.retry_after else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in (413, 431):
            headers["Connection"] = "close"  # what is still to come is not waited for
        shape = shape_of(path)
        overloaded = shape is anthropic_shape and self.status == 503
        return JSONResponse(shape(self), _ANTHROPIC_OVERLOADED if overloaded else self.status, headers)


Shape = Callable[[ApiError], dict[str, Any]]


def openai_shape(error: ApiError) -> dict[str, Any]:
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def anthropic_shape(error: ApiError) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


_ANTHROPIC_OVERLOADED = 529  # Anthropic's own status for it
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_SHAPES: dict[str, Shape] = {"/v1/messages": anthropic_shape}  # by the beginning of the path


def shape_of(path: str) -> Shape:
    """How errors are written on the routes below `path`."""
    return next((shape for beginning, shape in _SHAPES.items() if path.startswith(beginning)), openai_shape)


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of `error`: of an unexpected one just its type, for its text may hold anything."""
    match error:
        case ApiError():
            return error
        case ContextLengthError():
            return ApiError(400, str(error), "context_length_exceeded", param="messages")
        case RequestError():
            return ApiError(400, str(error), "invalid_value", param=_leading_field(str(error)))
        case QueueFullError():
            return ApiError(503, str(error), "queue_full", retry_after=error.retry_after)
        case EngineDeadError():
            return ApiError(503, str(error), "engine_dead", retry_after=5)
        case HTTPException(status_code=400, __cause__=Exception() as cause):  # FastAPI could not read the body
            return ApiError(400, f"the body is not JSON that can be read: {_unreadable(cause)}", "invalid_json")
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), _HTTP_CODES.get(error.status_code, "http_error"))
        case VllmNbError():
            return ApiError(500, str(error), "generation_failed")
    return ApiError(500, f"internal error ({type(error).__name__}); the engine's log has the details", "internal_error")


_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def _unreadable(cause: BaseException) -> str:
    if isinstance(cause, RecursionError):
        return "it is nested too deeply"
    if isinstance(cause, UnicodeError):
        return "its text is not UTF-8"
    return "a number in it has too many digits" if isinstance(cause, ValueError) else type(cause).__name__


def _leading_field(message: str) -> str | None:
    """SamplingParams' messages begin with the field: "top_p must be ..."."""
    match = re.match(r"([a-z_]+)(?:\[[^\]]*\])? must ", message)
    return match[1] if match else None


def _validation_error(error: RequestValidationError) -> ApiError:
    if error.body and isinstance(error.body, bytes):  # FastAPI parses it where its type says JSON
        message = "the body must be JSON, sent with the header Content-Type: application/json"
        return ApiError(415, message, "unsupported_media_type")
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']} at character {where[-1]}", "invalid_json")
    # A union's location ends in the names of its types ("stop", "list[str]"): those are no fields.
    field = ".".join(part for part in where if re.fullmatch(r"\w+", part) and part not in _TYPE_NAMES) or None
    said = _alternatives(error, first)
    message = f"{field}: {said}" if field else f"the body must be a JSON object: {said}"
    return ApiError(400, message, "invalid_type", param=field)


def _alternatives(error: RequestValidationError, first: Any) -> str:
    """What `first` says, and the other types that a field may have too."""
    *place, kind = first["loc"]
    if kind not in _TYPE_NAMES:
        return str(first["msg"])
    said = dict.fromkeys(other["msg"] for other in error.errors() if [*other["loc"][:-1]] == place)
    return ", or ".join(text.removeprefix("Input should be ") if n else text for n, text in enumerate(said))


_TYPE_NAMES = {"str", "int", "float", "bool", "list", "dict"}


def add_error_handlers(app: FastAPI) -> None:
    """Answer with the OpenAI shape whatever goes wrong in a route or before it."""

    async def validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _validation_error(error).response(path_of(request.scope))

    async def any_other(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response(path_of(request.scope))

    app.add_exception_handler(RequestValidationError, validation)
    for kind in (HTTPException, VllmNbError, Exception):  # uvicorn logs what is handled as Exception
        app.add_exception_handler(kind, any_other)


def path_of(scope: Scope) -> str:
    """The path of a request as the routes have it, without a proxy's prefix."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def streamed_error(error: BaseException) -> ApiError:
    """What the last event of a stream that failed tells: its status line has long been sent."""
    told = as_api_error(error)
    if told.code == "internal_error":
        logger.error("unexpected error in a stream", exc_info=error)
    return told


def error_event(error: BaseException) -> bytes:
    """OpenAI's last event of a stream that failed."""
    body = json.dumps(openai_shape(streamed_error(error)), separators=(",", ":"))
    return b"data: " + body.encode() + b"\n\n"
