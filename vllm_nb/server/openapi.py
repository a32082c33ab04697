"""The OpenAPI document, as the routes really are: errors in their dialect's shape, the key, no answer 422."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from vllm_nb.server.security import OPEN_PATHS

_TEXT = {"type": "string"}
_NULLABLE_TEXT = {"type": ["string", "null"]}
_ERRORS = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {"message": _TEXT, "type": _TEXT, "param": _NULLABLE_TEXT, "code": _TEXT},
            }
        },
    },
    "AnthropicError": {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": _TEXT, "message": _TEXT},
            },
        },
    },
}


def add_openapi(app: FastAPI) -> None:
    """Make `app` describe itself; the document is built when somebody asks for it."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(path, method, operation) in the document's order."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas |= _ERRORS
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, _, operation in operations(document):
        shape = "AnthropicError" if path.startswith("/v1/messages") else "Error"
        operation["responses"].pop("422", None)
        operation["responses"]["default"] = {
            "description": "What went wrong",
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}},
        }
        operation["security"] = [] if path in OPEN_PATHS else [{"key": []}]
    return document
