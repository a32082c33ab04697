"""Who gets the page: login, cookie, headers, and a reverse proxy with a prefix."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from playwright.sync_api import expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from vllm_nb.server.app import bind


@pytest.fixture
def http(engine) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=engine.client.url, trust_env=False, verify=False) as client:
        yield client


def test_a_browser_without_the_key_logs_in_once(page, engine):
    answer = page.goto(engine.client.url)
    assert answer.status == 401
    page.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("This is not the key.")
    page.get_by_label("API key").fill(engine.client.token)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message the model")).to_be_focused()
    assert page.url == f"{engine.client.url}/"
    (cookie,) = page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert engine.client.token not in cookie["value"]
    assert page.evaluate("document.cookie") == ""
    page.reload()
    expect(page.get_by_label("Message the model")).to_be_focused()


def test_a_link_with_the_key_logs_in_and_forgets_it(page, engine):
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    page.goto(f"{engine.client.url}/#key={engine.client.token}")
    expect(page.get_by_label("Message the model")).to_be_focused()
    assert page.url == f"{engine.client.url}/"
    assert not [url for url in sent if engine.client.token in url.partition("#")[0]]


def test_the_cookie_stands_for_the_key_and_the_origin_still_counts(engine, http):
    page = http.post("/login", data={"key": engine.client.token})
    assert page.status_code == 303
    assert page.headers["location"] == "./"
    assert "Secure" not in page.headers["set-cookie"]
    assert http.get("/v1/models").status_code == 200
    assert http.get("/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403
    name, value = next(iter(http.cookies.items()))
    for wrong in (f"{name}={value[:-1]}", f"{name}=", f"other={value}", "", f"{name}=é"):
        answer = httpx.get(f"{engine.client.url}/v1/models", headers={"Cookie": wrong.encode()}, trust_env=False)
        assert answer.status_code == 401, wrong
    assert http.post("/login", data={"key": "x" * 5000}).status_code == 401
    assert http.post("/login", content=b"\xff\xfe").status_code == 401
    https = {"Origin": engine.client.url.replace("http:", "https:")}
    assert "; Secure" in http.post("/login", data={"key": engine.client.token}, headers=https).headers["set-cookie"]


@pytest.mark.parametrize("path", ["/ui/page.js", "/ui/chat.css", "/v1/models", "/docs"])
def test_without_the_key_nothing_else_is_there(http, path):
    assert http.get(path).status_code == 401


def test_nothing_may_come_from_elsewhere(engine, http):
    login = http.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in login
    assert "unsafe" not in login
    http.headers["Authorization"] = f"Bearer {engine.client.token}"
    page = http.get("/")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    addresses = re.findall(r'(?:href|src)="([^"]*)"', page.text)
    assert addresses
    assert not [address for address in addresses if address.startswith("/") or "//" in address]
    assert http.get("/ui/page.js").headers["content-type"].startswith("text/javascript")
    assert http.get("/ui/index.html").status_code == 404
    assert http.get("/ui/..%2fui.py").status_code == 404


@contextmanager
def proxied(target: str, prefix: str) -> Iterator[str]:
    """A reverse proxy as JupyterHub has it: what is below the prefix is passed on, with the browser's own Host."""
    upstream = httpx.AsyncClient(base_url=target, trust_env=False, verify=False, timeout=60)

    async def forward(request: Request) -> StreamingResponse:
        path = request.url.path.removeprefix(prefix)
        passed = upstream.build_request(request.method, path, headers=request.headers.raw, content=await request.body())
        answer = await upstream.send(passed, stream=True)
        response = StreamingResponse(answer.aiter_raw(), answer.status_code)
        response.raw_headers = [(k.lower(), v) for k, v in answer.headers.raw if k.lower() != b"transfer-encoding"]
        return response

    app = Starlette(routes=[Route(prefix + "/{path:path}", forward, methods=["GET", "POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with bind("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}{prefix}/"
        finally:
            server.should_exit = True
            thread.join()


def test_it_works_below_a_prefix(page, engine):
    with proxied(engine.client.url, "/user/ada/proxy/8000") as address:
        page.goto(address)
        page.get_by_label("API key").fill(engine.client.token)
        page.keyboard.press("Enter")
        expect(page.get_by_label("Message the model")).to_be_focused()
        assert page.url == address
        page.keyboard.type("Hello")
        page.keyboard.press("Enter")
        expect(page.locator(".vn-assistant .vn-facts")).to_contain_text("tok/s")
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name="Send (Ctrl+Enter)")).to_be_visible()
