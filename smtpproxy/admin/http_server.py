"""The admin address: /metrics, health, readiness and the live page.

Whoever reaches it reads who writes to whom, so it belongs on loopback or a Unix socket; elsewhere a
token is asked for, as `Authorization: Bearer` or once as `/?token=`, which a cookie then keeps.
Health and readiness are for everybody.  Nothing is loaded from elsewhere, nothing is taken in, and
no other site's page may read it or make a browser ask for it.

A connection waits until a request of it has been let in; then it has a seat.  Strangers can only
take the places of those that wait, where the oldest goes for a new one: a request that comes at
once is read in time, and an answer about health needs no seat.
"""

import asyncio
import hmac
import socket
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from ipaddress import ip_address

from aiohttp import hdrs, web

from smtpproxy.admin import bad_requests, health
from smtpproxy.admin.live_feed import LiveFeed, StatusSource
from smtpproxy.metrics.exposition import CONTENT_TYPE, Exposition

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

WAITING = 200
"""Connections that may wait: have sent no request that was let in; for one more the oldest goes.

More than come in the few turns of the loop in which a request is read, `BACKLOG` in each.
"""
SEATS = 200
"""Connections that may stay open after a request that was let in.  Without bounds, whoever opens
ever more could take all file descriptors, without which no worker can be replaced."""
BACKLOG = 20
WAITING_S = 5.0
"""How long a connection may wait."""
UNREAD_S = 20.0
"""Who does not read what the page is told for so long, is told no more."""
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


class AdminServer:
    """Serves HTTP.

    token: who does not know it is not let in; empty where nobody else can come.
    """

    def __init__(self, token: str, source: StatusSource) -> None:
        self._token = token
        static = files("smtpproxy.admin") / "static"
        # Read at once: an upgrade may put those of another version there.
        self._bodies = {name: (static / name).read_bytes() for name, _ in STATIC.values()}
        self._source = source
        self._live_feed = LiveFeed(source)
        self._exposition = Exposition()
        self._servers: list[asyncio.Server] = []
        self._has_name = False
        self._waiting: dict[web.RequestHandler, asyncio.TimerHandle] = {}  # the oldest first
        self._seated: set[web.RequestHandler] = set()
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/metrics", self._metrics)
        for path in health.PATHS:
            app.router.add_get(path, self._health)
        app.router.add_get("/events", self._events, allow_head=False)
        app.router.add_get("/{name:[a-z.]*}", self._static)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=bad_requests.logger(),
            shutdown_timeout=1.0,
            keepalive_timeout=75.0,
        )

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Begin to serve at listening sockets, which stay the caller's."""
        await self._runner.setup()
        self._has_name = any(each.family != socket.AF_UNIX for each in sockets)
        loop = asyncio.get_running_loop()
        for each in sockets:
            own = each.dup()
            self._servers.append(await loop.create_server(self._accept, sock=own, backlog=BACKLOG))

    async def stop(self) -> None:
        """Serve no more."""
        for server in self._servers:
            server.close()
        self._live_feed.close()
        await self._runner.cleanup()

    def _accept(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None
        handler = server()
        if len(self._waiting) >= WAITING:
            self._close_waiting(next(iter(self._waiting)))
        timer = asyncio.get_running_loop().call_later(WAITING_S, self._close_waiting, handler)
        self._waiting[handler] = timer
        return handler

    def _close_waiting(self, handler: web.RequestHandler) -> None:
        self._waiting.pop(handler).cancel()
        if handler.transport is not None:
            handler.transport.abort()

    def _seat(self, handler: web.RequestHandler) -> bool:
        """Let a connection stay open; tell whether there is room for it."""
        if handler in self._seated:
            return True
        if len(self._seated) >= SEATS:
            self._seated = {each for each in self._seated if each.transport is not None}
        if len(self._seated) >= SEATS:
            return False
        if handler in self._waiting:
            self._waiting.pop(handler).cancel()
        self._seated.add(handler)
        return True

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let nobody in who is not to see this."""
        if health.is_asked_for(request.path):
            return _last(await handler(request))
        if _is_from_elsewhere(request):
            return _told(403, "other sites may not ask\n")
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
            # A page of some other site, whose name was made to mean this address.
            return _told(403, "ask by address, please\n")
        if not self._seat(request.protocol):
            return _last(_told(503, "too many connections\n"))
        return await handler(request)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self._token.encode())

    async def _metrics(self, _: web.Request) -> web.Response:
        body = self._exposition.render(self._source.snapshot())
        return web.Response(body=body, headers={**HEADERS, "Content-Type": CONTENT_TYPE})

    async def _health(self, request: web.Request) -> web.Response:
        return _told(*await health.answer(request.path, self._source))

    async def _static(self, request: web.Request) -> web.Response:
        found = STATIC.get(request.match_info["name"])
        if found is None:
            return _told(404, "not found\n")
        name, kind = found
        body = self._bodies[name]
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=HEADERS)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self._live_feed.full:
            return _told(503, "too many look already\n")
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


def _told(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text, headers=HEADERS)


def _last(response: web.StreamResponse) -> web.StreamResponse:
    """Have the connection closed after this response."""
    response.force_close()
    return response


def _is_from_elsewhere(request: web.Request) -> bool:
    """Tell whether a page of another site has made a browser ask; a link may lead to the page."""
    site = request.headers.get("Sec-Fetch-Site", "none")
    if site in ("none", "same-origin"):
        return False
    return request.path != "/" or request.headers.get("Sec-Fetch-Mode") != "navigate"


def _is_own_name(host: str) -> bool:
    """Tell whether no other site can have this name; what is no browser may leave it out."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name in ("", "localhost"):
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
