"""The web page at /, its files below /ui/, and the login that lets a browser in where an API key is needed.

The files are in vllm_nb/ui/, which the chat widget of notebooks reads too. All addresses in them are relative, so that
the page works below any prefix of a reverse proxy.
"""

import base64
import hashlib
import html
import mimetypes
import re
from pathlib import Path
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from vllm_nb.server.errors import ApiError
from vllm_nb.server.security import Policy

FOLDER = Path(__file__).parents[1] / "ui"
_MAX_LOGIN = 4096  # bytes
_WRONG_KEY = "This is not the key."

_COMMON = "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
_PAGE_POLICY = f"{_COMMON}; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'"
_HEADERS = {
    "Cache-Control": "no-cache",
    "Referrer-Policy": "same-origin",  # with "no-referrer" a form would be sent with the Origin "null"
    "X-Content-Type-Options": "nosniff",
}
mimetypes.add_type("text/javascript", ".js")  # some systems know it by another name, which browsers refuse for modules


def create_router(policy: Policy) -> APIRouter:
    """The routes of the page, which `policy` protects like all others: only /login is open."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in {".js", ".css", ".svg"}}
    index = (FOLDER / "index.html").read_text(encoding="utf-8")

    @router.get("/")
    async def page() -> Response:
        return HTMLResponse(index, headers=_HEADERS | {"Content-Security-Policy": _PAGE_POLICY})

    @router.get("/ui/{name}")
    async def file(name: str) -> Response:
        if name not in files:
            raise ApiError(404, f"the page has no file {name!r}", "not_found")
        return Response(files[name], headers=_HEADERS, media_type=mimetypes.guess_type(name)[0])

    @router.post("/login")
    async def login(request: Request) -> Response:
        answer = Response(status_code=303, headers=_HEADERS | {"Location": "./"})
        if policy.token is None:
            return answer
        if not policy.is_token(_form_key(await request.body())):
            return login_page(_WRONG_KEY)
        # No path: it is then that of this request, prefix included. No time: it ends with the browser.
        secure = request.headers.get("origin", "").startswith("https:")
        answer.headers["Set-Cookie"] = f"{policy.cookie}; HttpOnly; SameSite=Strict{'; Secure' if secure else ''}"
        return answer

    return router


def _form_key(body: bytes) -> str:
    """What was typed. (Without python-multipart, which Starlette's forms need.)"""
    if len(body) > _MAX_LOGIN:
        return ""
    return parse_qs(body.decode("utf-8", "replace")).get("key", [""])[0]


def login_page(message: str = "This server needs its API key.") -> Response:
    """What a browser without the key gets instead of the page."""
    page = (FOLDER / "login.html").read_text(encoding="utf-8")
    policy = f"{_COMMON}; script-src {_digest(page, 'script')}; style-src {_digest(page, 'style')}"
    headers = _HEADERS | {"Content-Security-Policy": policy, "WWW-Authenticate": "Bearer", "Cache-Control": "no-store"}
    return HTMLResponse(page.replace("{message}", html.escape(message)), 401, headers)


def _digest(page: str, tag: str) -> str:
    """The inline element of that tag as the Content-Security-Policy allows it: by its hash."""
    found = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
