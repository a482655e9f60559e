"""The middleware that every request and every answer passes.

In: a request id, the name the server was called by, where the request came from, the key, the rate. Out: headers that
keep browsers from doing more than the page needs, one line of log, the counters.

Two attacks on a server that trusts its own machine are prevented here. A page of another origin that sends requests in
a visitor's name is recognised by `Sec-Fetch-Site`, or by `Origin` in browsers that do not send it. A foreign name that
resolves to this machine (DNS rebinding) is recognised by `Host`: only addresses, `localhost` and the operator's names
pass.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

from visard_web.keys import Keys, presented_key
from visard_web.log import LOGGER
from visard_web.problems import CLIENT_CLOSED_REQUEST, ClientDisconnected, Problem, problem_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from visard_web.limiter import Rate
    from visard_web.metrics import Metrics

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_OPEN = ("/healthz", "/readyz", "/openapi.json")  # without a key: probes, and what the API looks like
_PAGE = ("/", "/docs", "/static/", "/page/")
_LINKED = ("/", "/docs", "/static/", *_OPEN)  # where a link on another site may lead
_UPLOADS = ("/v1/", "/page/photos")
_CHANGES = "/page/photos/"  # of photos that are kept: counted apart, or a photo of the page would count twice

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DRAIN_BYTES = 64 * 2**20  # a caller that is refused should read why instead of a broken connection
_DRAIN_S = 10.0


@dataclass(kw_only=True)
class Exchange:
    """One request and its answer, as the middleware sees them.

    Attributes:
        request_id: the caller's own, where it is a sane one.
        error: class of the error that was answered; empty where there was none.
        status: 0 until the answer begins.
    """

    request_id: str
    error: str = ""
    status: int = 0
    started: float = field(default_factory=time.perf_counter)


class RequestMiddleware:
    """ASGI middleware around the whole app.

    Args:
        app: what it stands before.
        rate: how often each caller may upload.
        metrics: where requests are counted.
        keys: who is let in; None for everybody.
        hosts: further names by which this server may be called.
    """

    def __init__(
        self, app: ASGIApp, *, rate: Rate, metrics: Metrics, keys: Keys | None, hosts: tuple[str, ...]
    ) -> None:
        self._app, self._rate, self._metrics, self._keys = app, rate, metrics, keys
        self._hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":  # the start and the end of the app; there are no web sockets here
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        exchange = Exchange(request_id=asked if _REQUEST_ID.fullmatch(asked) else secrets.token_hex(16))
        scope["visard"] = exchange
        body = _Body(receive, awaited="expect" in headers)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                if exchange.status != HTTPStatus.REQUEST_TIMEOUT:  # there the waiting is over
                    await body.drain()
                outgoing = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    outgoing.setdefault(name, value)
                outgoing["X-Request-Id"] = exchange.request_id
            await send(message)

        failed = False
        try:
            await self._check(scope, headers)
            await self._app(scope, body.receive, answer)
        except Problem as problem:
            exchange.error = problem.error
            await problem_response(problem, exchange.request_id)(scope, body.receive, answer)
        except ClientDisconnected:
            exchange.error, exchange.status = "ClientDisconnected", CLIENT_CLOSED_REQUEST
        except Exception:  # a defect; the app has answered it already where it could
            failed = True
            exchange.error = "InternalError"
            LOGGER.exception("defect", extra={"fields": {"request_id": exchange.request_id}})
            if not exchange.status:
                defect = Problem(500, "InternalError", "this server has a defect: tell its operator")
                await problem_response(defect, exchange.request_id)(scope, body.receive, answer)
        finally:
            self._record(scope, exchange, failed=failed)

    async def _check(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        if not self._knows_host(headers.get("host", "")):
            raise Problem(421, "UnknownHost", "this server is not known by that name: use its address, or name it")
        if not (scope["method"] in ("GET", "HEAD") and _under(path, _LINKED)) and _foreign(headers):
            raise Problem(403, "ForeignOrigin", "requests from pages of other sites are refused")
        caller = self._caller(scope, headers, path)
        if scope["method"] == "POST" and path.startswith(_UPLOADS):
            await self._rate.count(f"{'change' if path.startswith(_CHANGES) else 'upload'} by {caller}")

    def _knows_host(self, host: str) -> bool:
        name = host.lower()
        if not name.endswith("]"):
            name = re.sub(r":\d*$", "", name)
        with suppress(ValueError):  # an address needs no name server, so none can have lied
            ipaddress.ip_address(name.strip("[]"))
            return True
        return name in self._hosts

    def _caller(self, scope: Scope, headers: Headers, path: str) -> str:
        """Say who asks, by the name of the key or by address."""
        if self._keys is not None and not _under(path, _OPEN):
            page = _under(path, _PAGE)
            key = presented_key(headers, basic=page)
            name = None if key is None else self._keys.name(key)
            if name is None:
                challenge = 'Basic realm="Visard: any name, the API key as password"' if page else "Bearer"
                raise Problem(
                    401, "PermissionDenied", "an API key is needed: X-API-Key", {"WWW-Authenticate": challenge}
                )
            return f"key {name}"
        return f"address {(scope.get('client') or ('',))[0]}"

    def _record(self, scope: Scope, exchange: Exchange, *, failed: bool) -> None:
        seconds = time.perf_counter() - exchange.started
        route = getattr(scope.get("route"), "path", None) or ("/static" if "/static" in scope["path"] else "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        status = 500 if failed else exchange.status or CLIENT_CLOSED_REQUEST
        self._metrics.count_request(route, method, status, exchange.error, seconds)
        LOGGER.info(
            "request",
            extra={
                "fields": {
                    "request_id": exchange.request_id,
                    "method": method,
                    "route": route,
                    "status": status,
                    "error": exchange.error,
                    "seconds": round(seconds, 4),
                }
            },
        )


_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


class _Body:
    """A request's body on its way in, which knows whether its end has come."""

    def __init__(self, receive: Receive, *, awaited: bool) -> None:
        self._receive = receive
        self._ended = awaited  # who asks first (Expect: 100-continue) has not sent anything yet
        self._expects = awaited

    async def receive(self) -> Message:
        if self._expects:
            self._expects = self._ended = False
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._ended = True
        return message

    async def drain(self) -> None:
        """Throw away what is left: a connection closed on a sender that has not read the answer loses it."""

        async def read() -> None:
            size = 0
            while not self._ended and size < _DRAIN_BYTES:
                size += len((await self.receive()).get("body", b""))

        if not self._ended:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(read(), _DRAIN_S)


def _under(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or (place != "/" and place.endswith("/") and path.startswith(place)) for place in places)


def _foreign(headers: Headers) -> bool:
    """Whether a browser says that another site's page, or another program's page on this machine, asks."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()
