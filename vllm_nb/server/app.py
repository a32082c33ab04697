"""The HTTP server over one engine: `serve` for an engine that exists, `run` for one that is loaded meanwhile."""

import asyncio
import errno
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from vllm_nb.errors import EngineDeadError, VllmNbError
from vllm_nb.server import (
    anthropic,
    completions,
    docs,
    embeddings,
    inspect,
    mcp_routes,
    measure,
    metrics,
    model_list,
    observe,
    openai,
    responses,
    tokens,
    ui,
    usage,
)
from vllm_nb.server.errors import add_error_handlers
from vllm_nb.server.host import EngineHost
from vllm_nb.server.mcp_servers import McpServers
from vllm_nb.server.openapi import add_openapi
from vllm_nb.server.protocol import MAX_HEAD, LimitedProtocol
from vllm_nb.server.security import Policy, SecurityMiddleware
from vllm_nb.server.streaming import REQUEST_ID
from vllm_nb.server.watch import DRAIN, watch

if TYPE_CHECKING:
    from vllm_nb.api import Engine

_ROUTES = (
    anthropic,
    completions,
    embeddings,
    mcp_routes,
    measure,
    metrics,
    model_list,
    openai,
    responses,
    tokens,
    usage,
)
_KEEP_ALIVE = 60  # seconds; longer than clients keep idle connections, so that they never meet a closing one
_GIVE_UP = 10  # seconds for a client to take the end of an answer that was aborted


def serve(
    engine: "Engine",
    port: int = 8000,
    *,
    host: str = "127.0.0.1",
    api_key: str | None = None,
    allowed_hosts: Sequence[str] = (),
    allowed_origins: Sequence[str] = (),
    without_api_key: bool = False,
    with_ui: bool = True,
    mcp_config: Path | str | None = None,
) -> None:
    """Serve `engine` until Ctrl+C or SIGTERM, then finish the running answers. The caller closes the engine.

    api_key: required as a bearer token on every route but /health; may be left out only on a loopback address, or with
    without_api_key, for a network where everybody may use the model. allowed_hosts: names in the Host header to answer
    besides those of this machine, for a reverse proxy. allowed_origins: as "https://example.org", whose pages may ask
    from a browser (CORS); none by default. with_ui: the web page at /. mcp_config: a file with the
    MCP servers whose tools requests may use.

    Raises ValueError for an open address without a key, VllmNbError for a port that is taken, EngineDeadError when the
    engine fails while serving.
    """
    policy = Policy.for_address(host, api_key, allowed_hosts, allowed_origins, without_api_key)
    engine_host = EngineHost.ready(engine)
    engine_host.mcp = McpServers.from_file(mcp_config)
    run(engine_host, bind(host, port), policy, with_ui=with_ui)
    if engine_host.failure is not None:
        raise EngineDeadError(engine_host.failure)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, so that a taken port is known before a model is loaded. Raises VllmNbError."""
    if not 0 <= port <= 65535:
        raise VllmNbError(f"port must be from 0 to 65535, not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as on_error:
            listener = on_error.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
            on_error.pop_all()
    except OSError as error:
        wrong_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        advice = "give an address of this machine" if wrong_host else "choose another port, or 0 for a free one"
        raise VllmNbError(f"cannot listen on {host} port {port}: {error.strerror}; {advice}") from None
    return listener


def run(
    host: EngineHost,
    listener: socket.socket,
    policy: Policy,
    *,
    identity: dict[str, Any] | None = None,
    on_tick: Callable[[], None] = lambda: None,
    with_ui: bool = True,
) -> None:
    """Serve `host` on `listener` until stopped, loading its engine first where there is none.

    Returns also when loading fails or the engine does: `host.failure` says so.
    """

    def stop() -> None:
        server.should_exit = True

    def stopping() -> bool:
        return server.should_exit

    app = create_app(host, policy, identity or {}, stop, stopping, on_tick, with_ui)
    config = uvicorn.Config(
        app,
        access_log=False,
        http=LimitedProtocol,
        h11_max_incomplete_event_size=MAX_HEAD,
        log_config=None,  # the process's own logging
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=int(DRAIN) + _GIVE_UP,
    )
    server = uvicorn.Server(config)
    if _loop_runs():
        _run_beside_loop(server, listener)
    else:
        server.run(sockets=[listener])


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_beside_loop(server: uvicorn.Server, listener: socket.socket) -> None:
    """A notebook's main thread has a running loop already, so the server gets a thread and a loop of its own."""
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="vllm-nb-server")
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        server.should_exit = True
        thread.join()
        raise


def create_app(
    host: EngineHost,
    policy: Policy,
    identity: dict[str, Any],
    stop: Callable[[], None],
    stopping: Callable[[], bool],
    on_tick: Callable[[], None],
    with_ui: bool,
) -> FastAPI:
    """The ASGI application: OpenAI's routes and ours, and the web page, behind `policy`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if host.engine is None:
            host.start_loading()
        if host.mcp is not None:
            host.mcp.start()
        watching = asyncio.create_task(watch(host, stop, stopping, on_tick))
        yield
        watching.cancel()
        if host.mcp is not None:
            await host.mcp.stop()

    app = FastAPI(
        title="vllm_nb",
        version=version("vllm-nb"),
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from a CDN; docs.py makes one without
        redoc_url=None,
        redirect_slashes=False,
    )
    for routes in _ROUTES:
        app.include_router(routes.create_router(host))
    app.include_router(inspect.create_router(host, policy, identity, stop))
    app.include_router(observe.create_router(host, stopping))
    app.include_router(docs.create_router(app))
    if with_ui:
        app.include_router(ui.create_router(policy))
    add_openapi(app)
    app.add_middleware(SecurityMiddleware, policy=policy, login_page=ui.login_page if with_ui else None)
    if policy.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[*policy.origins],
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID, "Retry-After"],
        )
    add_error_handlers(app)
    return app
