"""Who may ask: a bearer token, the Host and Origin of the request, and where the server may listen at all.

Any page in the user's browser can send requests to localhost, so loopback alone protects nothing: a foreign Origin is
refused (cross-site requests), unless it is on a list, and so is a foreign Host (DNS rebinding). A browser that has
shown the token carries a cookie instead of it.
"""

import hashlib
import hmac
import ipaddress
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_nb.server.errors import ApiError, path_of

logger = logging.getLogger(__name__)

MAX_BODY = 32 * 2**20  # bytes
MAX_HEADERS = 32 * 2**10
OPEN_PATHS = frozenset({"/health", "/login"})  # need no key: a load balancer asks there, and a browser brings the key
_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Policy:
    """token: required on every route but OPEN_PATHS; None asks for none. hosts: names in the Host header that are
    answered; None answers any, which is right only where a token is required. any_address: answer numeric Hosts too,
    which no page can rebind. origins: pages that may ask although they come from elsewhere. max_body: bytes."""

    token: str | None = field(default=None, repr=False)
    hosts: frozenset[str] | None = _LOOPBACK_HOSTS
    any_address: bool = False
    origins: frozenset[str] = frozenset()
    max_body: int = MAX_BODY

    @classmethod
    def for_address(
        cls,
        host: str,
        token: str | None,
        extra_hosts: Sequence[str] = (),
        origins: Sequence[str] = (),
        without_token: bool = False,
    ) -> "Policy":
        """The policy of a server listening on `host`.

        Raises ValueError for an address that other machines reach when there is no token, unless `without_token` says
        that this is meant; and for an origin that is none.
        """
        allowed = frozenset(map(_checked_origin, origins))
        names = _LOOPBACK_HOSTS | {host.lower()} | {name.lower() for name in extra_hosts}
        if is_loopback(host):
            return cls(token, names, origins=allowed)
        if token:
            return cls(token, None, origins=allowed)  # known by many names there, and no page can guess the token
        if not without_token:
            raise ValueError(
                f"host {host!r} can be reached from other machines, so an API key is needed: pass --api-key KEY "
                "(in Python api_key=...), or listen on 127.0.0.1; --without-api-key lets everybody in"
            )
        logger.warning("listening on %s without an API key: whoever reaches this machine can use the model", host)
        return cls(None, names | {socket.gethostname().lower()}, any_address=True, origins=allowed)

    def check(self, headers: Headers, path: str = "") -> None:
        """Raises ApiError 401, 403, 413 or 431."""
        host = headers.get("host", "")
        if not self._answers_to(_hostname(host)):
            raise ApiError(403, f"requests to host {host!r} are not answered here", "host_not_allowed", param="Host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower() and origin not in self.origins:
            raise ApiError(403, f"requests from pages of {origin} are not answered", "origin_not_allowed")
        if path not in OPEN_PATHS and not self.knows(headers):
            raise ApiError(401, "a valid API key is needed, as the header Authorization: Bearer KEY", "invalid_api_key")
        if sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEADERS:
            raise ApiError(431, f"the headers are larger than {MAX_HEADERS // 2**10} KiB", "head_too_large")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.max_body:
            raise _too_large(self.max_body)

    def _answers_to(self, name: str) -> bool:
        return self.hosts is None or name in self.hosts or (self.any_address and _is_address(name))

    def knows(self, headers: Headers) -> bool:
        """Whether the request carries the token, or none is needed."""
        if self.token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = headers.get("x-api-key", "")  # as Anthropic's clients send it
        return self.is_token(given.strip()) or self._knows_cookie(headers.get("cookie", ""))

    def is_token(self, given: str) -> bool:
        """Whether `given` is the token, compared in constant time."""
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    @property
    def cookie(self) -> str:
        """NAME=VALUE for a browser that has shown the token. Browsers send it to every port of this host, so it is
        derived from the token, which nobody learns from it, and so is its name: two servers don't overwrite theirs."""
        digest = hmac.new((self.token or "").encode(), b"vllm_nb login cookie", hashlib.sha256).hexdigest()
        return f"vllm_nb_{digest[:8]}={digest[8:]}"

    def _knows_cookie(self, header: str) -> bool:
        name, _, value = self.cookie.partition("=")
        return hmac.compare_digest(cookie_parser(header).get(name, "").encode(), value.encode())


class SecurityMiddleware:
    """Applies a Policy before anything else sees the request. (Plain ASGI: it must not stand between a stream and
    the news that its client has left.)

    login_page: what a browser without the token gets at /.
    """

    def __init__(self, app: ASGIApp, policy: Policy, login_page: Callable[[], Response] | None = None):
        self.app = app
        self.policy = policy
        self.login_page = login_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self.policy.check(Headers(scope=scope), path_of(scope))
            except ApiError as error:
                await self._refusal(error, path_of(scope))(scope, receive, send)
                return
            receive = self._limited(receive)
        elif scope["type"] == "websocket":
            raise RuntimeError("there are no websocket routes")
        await self.app(scope, receive, send)

    def _refusal(self, error: ApiError, path: str) -> Response:
        if error.status == 401 and path == "/" and self.login_page is not None:
            return self.login_page()
        return error.response(path)

    def _limited(self, receive: Receive) -> Receive:
        """A chunked body does not say its length beforehand, so count."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.policy.max_body:
                # FastAPI passes this type through while it reads a body, and makes a 400 of any other.
                raise HTTPException(413, str(_too_large(self.policy.max_body)))
            return message

        return counted


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _checked_origin(origin: str) -> str:
    """As browsers send it. Raises ValueError."""
    parts = urlsplit(origin)
    if (
        parts.scheme not in ("http", "https")
        or not parts.netloc
        or origin != f"{parts.scheme}://{parts.netloc}".lower()
    ):
        raise ValueError(f"an allowed origin must be like https://example.org or http://localhost:3000, not {origin!r}")
    return origin


def _hostname(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the request is larger than {limit // 2**20} MiB", "body_too_large")
