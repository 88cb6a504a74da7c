"""The HTTP server of the admin address: /metrics, health, readiness and the live page.

It shows senders and recipients, so it belongs on loopback or a Unix socket.  Any other address
needs a token: as `Authorization: Bearer`, or once as `/?token=`, which a cookie then keeps.  Health
and readiness need none.  The page loads nothing from other sites, the server accepts no data, and
pages of other sites can neither read it nor make a browser send requests to it.

A connection is pending until one of its requests is authorized.  If too many are pending, the
oldest is closed for a new one; authorized connections are counted separately.  So unauthenticated
clients cannot block others: a request that follows its connection at once is read in time, and a
health request can be answered on a pending connection.
"""

import asyncio
import hmac
import socket
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from ipaddress import ip_address

from aiohttp import hdrs, web

from smtpproxy.admin import health
from smtpproxy.admin.bad_requests import BadRequests
from smtpproxy.admin.live_feed import LiveFeed, StatusSource
from smtpproxy.metrics.exposition import CONTENT_TYPE, Exposition

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PENDING = 200
"""The most pending connections; beyond them the oldest is closed for a new one.

A request is read within a few turns of the event loop, each of which accepts at most `BACKLOG`
connections, so this number is large enough.
"""
AUTHORIZED = 200
"""The most authorized connections.

Without a bound, one client could use up all file descriptors, and no worker could be replaced.
"""
BACKLOG = 20
PENDING_S = 5.0
"""How long a connection may be pending."""
UNREAD_S = 20.0
"""A viewer that does not read an event for this long is disconnected."""
COOKIE = "smtpproxy"
STATIC = {
    "": ("index.html", "text/html"),
    "style.css": ("style.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "list.js": ("list.js", "text/javascript"),
    "charts.js": ("charts.js", "text/javascript"),
    "timeline.js": ("timeline.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# RFC 6750 section 3
CHALLENGE = {**HEADERS, "WWW-Authenticate": "Bearer"}
NEEDS_TOKEN = "a token is needed: as Authorization: Bearer TOKEN, or once as /?token=TOKEN\n"  # noqa: S105
HOST_REFUSED = (
    "the Host header must be an IP address or localhost; set admin.token to allow names\n"
)


class AdminServer:
    """Serves the admin address.

    Args:
        token: The token that requests need; empty for none.
        source: The state of the service.
    """

    def __init__(self, token: str, source: StatusSource) -> None:
        self._token = token
        static = files("smtpproxy.admin") / "static"
        # Read at start: an upgrade may replace the files by those of another version.
        self._bodies = {name: (static / name).read_bytes() for name, _ in STATIC.values()}
        self._source = source
        self._live_feed = LiveFeed(source)
        self._exposition = Exposition()
        self._servers: list[asyncio.Server] = []
        self._has_name = False
        self._pending: dict[web.RequestHandler, asyncio.TimerHandle] = {}  # the oldest first
        self._authorized: set[web.RequestHandler] = set()
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/metrics", self._metrics)
        for path in health.PATHS:
            app.router.add_get(path, self._health)
        app.router.add_get("/events", self._events, allow_head=False)
        app.router.add_get("/{name:[a-z.]*}", self._static)
        self._bad_requests = BadRequests()
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=self._bad_requests.logger,
            shutdown_timeout=1.0,
            keepalive_timeout=75.0,
        )

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Start to serve on listening sockets, which the caller keeps."""
        await self._runner.setup()
        self._live_feed.start()
        self._has_name = any(each.family != socket.AF_UNIX for each in sockets)
        loop = asyncio.get_running_loop()
        for each in sockets:
            own = each.dup()
            self._servers.append(await loop.create_server(self._accept, sock=own, backlog=BACKLOG))

    async def stop(self) -> None:
        """Stop, and close all connections."""
        for server in self._servers:
            server.close()
        self._live_feed.close()
        await self._runner.cleanup()
        self._bad_requests.report()

    def _accept(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None
        handler = server()
        if len(self._pending) >= PENDING:
            self._close_pending(next(iter(self._pending)))
        timer = asyncio.get_running_loop().call_later(PENDING_S, self._close_pending, handler)
        self._pending[handler] = timer
        return handler

    def _close_pending(self, handler: web.RequestHandler) -> None:
        self._pending.pop(handler).cancel()
        if handler.transport is not None:
            handler.transport.abort()

    def _authorize(self, handler: web.RequestHandler) -> bool:
        """Count a connection as authorized; return whether there is room for it."""
        if handler in self._authorized:
            return True
        if len(self._authorized) >= AUTHORIZED:
            self._authorized = {each for each in self._authorized if each.transport is not None}
        if len(self._authorized) >= AUTHORIZED:
            return False
        if handler in self._pending:
            self._pending.pop(handler).cancel()
        self._authorized.add(handler)
        return True

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests without the token, and requests that pages of other sites cause."""
        if health.is_asked_for(request.path):
            return _last(await handler(request))
        if _is_from_elsewhere(request):
            return _text(403, "requests from other sites are refused\n")
        if self._token:
            given = request.query.get("token", "")
            if request.path == "/" and self._is_token(given):
                found = web.Response(status=303, headers={**HEADERS, "Location": "/"})
                found.set_cookie(COOKIE, given, httponly=True, samesite="Strict")
                return found
            header = request.headers.get(hdrs.AUTHORIZATION, "").removeprefix("Bearer ")
            if not (self._is_token(header) or self._is_token(request.cookies.get(COOKIE, ""))):
                return _last(web.Response(status=401, text=NEEDS_TOKEN, headers=CHALLENGE))
        elif self._has_name and not _is_own_name(request.headers.get(hdrs.HOST, "")):
            # DNS rebinding: the name of another site that resolves to this address.
            return _text(403, HOST_REFUSED)
        if not self._authorize(request.protocol):
            return _last(_text(503, "too many connections\n"))
        return await handler(request)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self._token.encode())

    async def _metrics(self, _: web.Request) -> web.Response:
        body = self._exposition.render(self._source.snapshot(), self._source.instance)
        return web.Response(body=body, headers={**HEADERS, "Content-Type": CONTENT_TYPE})

    async def _health(self, request: web.Request) -> web.Response:
        return _text(*await health.answer(request.path, self._source))

    async def _static(self, request: web.Request) -> web.Response:
        found = STATIC.get(request.match_info["name"])
        if found is None:
            return _text(404, "not found\n")
        name, kind = found
        body = self._bodies[name]
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=HEADERS)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self._live_feed.full:
            return _text(503, "too many viewers\n")
        viewer = self._live_feed.join()
        try:
            response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
            await response.prepare(request)
            while event := await viewer.get():
                async with asyncio.timeout(UNREAD_S):
                    await response.write(event)
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._live_feed.leave(viewer)
        return response


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text, headers=HEADERS)


def _last(response: web.StreamResponse) -> web.StreamResponse:
    """Close the connection after this response."""
    response.force_close()
    return response


def _is_from_elsewhere(request: web.Request) -> bool:
    """Return whether a page of another site caused the request; a link to the page is allowed."""
    site = request.headers.get("Sec-Fetch-Site", "none")
    if site in ("none", "same-origin"):
        return False
    return request.path != "/" or request.headers.get("Sec-Fetch-Mode") != "navigate"


def _is_own_name(host: str) -> bool:
    """Return whether no other site can have this Host; a client that is no browser may omit it."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name in ("", "localhost"):
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
