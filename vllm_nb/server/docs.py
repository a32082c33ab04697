"""/docs: the routes on one page, made here from the OpenAPI document. Nothing is loaded from elsewhere."""

import html
import json
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse

from vllm_nb.server.openapi import operations

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
details { border: 1px solid #8886; border-radius: .4rem; margin: .5rem 0; padding: .4rem .8rem }
summary { cursor: pointer }
code, pre { font: .9rem ui-monospace, monospace }
pre { overflow: auto; background: #8882; padding: .6rem; border-radius: .4rem }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .15rem .8rem .15rem 0 }
.method { display: inline-block; width: 4rem; font-weight: 600 }
"""
_NOTHING_FROM_ELSEWHERE = "default-src 'none'; style-src 'unsafe-inline'"


def create_router(app: FastAPI) -> APIRouter:
    """The page about the routes of `app`."""
    router = APIRouter()

    @router.get("/docs", response_class=HTMLResponse)
    async def docs() -> HTMLResponse:
        """This page."""
        return HTMLResponse(page(app.openapi()), headers={"Content-Security-Policy": _NOTHING_FROM_ELSEWHERE})

    return router


def page(document: dict[str, Any]) -> str:
    """The OpenAPI document as HTML."""
    title = html.escape(f"{document['info']['title']} {document['info']['version']}")
    schemas = document["components"]["schemas"]
    parts = "".join(_operation(path, method, operation, schemas) for path, method, operation in operations(document))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><h1>{title}</h1>'
        '<p>The same for programs: <a href="openapi.json">openapi.json</a>. Where the server has a key, requests carry '
        f"it as <code>Authorization: Bearer KEY</code>.</p>{parts}</body></html>"
    )


def _operation(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    name = f'<span class="method">{method.upper()}</span> <code>{html.escape(path)}</code>'
    lines = html.escape(operation.get("description") or operation.get("summary", "")).split("\n", 1)
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    parts = [f"<p>{line}</p>" for line in lines[1:]]
    if operation.get("parameters"):
        parts.append(_parameters(operation["parameters"]))
    if body is not None:
        parts.append(f"<h4>Body</h4>{_fields(_resolved(body, schemas))}")
    answer = operation["responses"].get("200", {}).get("content", {})
    for kind, content in answer.items():
        schema = _resolved(content.get("schema", {}), schemas)
        parts.append(f"<h4>Answer, {html.escape(kind)}</h4>{_fields(schema) if 'properties' in schema else ''}")
    return f"<details><summary>{name} {lines[0]}</summary>{''.join(parts)}</details>"


def _parameters(parameters: list[dict[str, Any]]) -> str:
    rows = [(p["name"], p.get("schema", {}), p["in"] + (", required" if p.get("required") else "")) for p in parameters]
    return _table(rows)


def _fields(schema: dict[str, Any]) -> str:
    if "properties" not in schema:
        return f"<pre>{html.escape(json.dumps(schema, indent=1))}</pre>"
    required = schema.get("required", ())
    rows = [(name, value, "required" if name in required else "") for name, value in schema["properties"].items()]
    return f"<p>{html.escape(schema.get('description', ''))}</p>{_table(rows)}"


def _table(rows: list[tuple[str, dict[str, Any], str]]) -> str:
    cells = (
        f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(type_name(schema))}</td><td>{note}</td></tr>"
        for name, schema, note in rows
    )
    return f"<table>{''.join(cells)}</table>"


def _resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """The schema itself, where it is named."""
    return schemas.get(schema.get("$ref", "").rpartition("/")[2], schema)


def type_name(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words: "list of whole number, or null"."""
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return ", or ".join(map(type_name, schema[key]))
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {type_name(schema.get('items', {}))}"
    name = {"integer": "whole number", "string": "text", "boolean": "true or false"}.get(str(kind), str(kind))
    limits = [f"{word} {schema[key]:g}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    return " ".join([name, *limits])
