"""The admin address: /metrics, /healthz, /readyz and the live page.

Whoever reaches it reads who writes to whom, so it belongs on loopback or a Unix socket; elsewhere a
token is asked for, as `Authorization: Bearer` or once as `/?token=`, which a cookie then keeps.
Nothing is loaded from elsewhere, nothing is taken in, and no other site's page may read it.
"""

import hmac
from collections.abc import Awaitable, Callable
from importlib.resources import as_file, files
from ipaddress import ip_address

from aiohttp import web

from smtpproxy.address import Address
from smtpproxy.admin.board import Board, Source
from smtpproxy.admin.exposition import Exposition

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

COOKIE = "smtpproxy"
STATIC = {
    "": ("index.html", "text/html"),
    "style.css": ("style.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "picture.js": ("picture.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Admin:
    """Serves HTTP at one address."""

    def __init__(self, address: Address, token: str, source: Source) -> None:
        self._address = address
        self._token = token
        self._source = source
        self._board = Board(source)
        self._exposition = Exposition()
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/readyz", self._readiness)
        app.router.add_get("/events", self._events)
        app.router.add_get("/{name:[a-z.]*}", self._static)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self) -> str:
        """Begin to serve, and return the real address; raises OSError if it can't be had."""
        await self._runner.setup()
        try:
            if self._address.is_unix:
                await web.UnixSite(self._runner, self._address.path).start()
                return str(self._address)
            await web.TCPSite(self._runner, self._address.host, self._address.port).start()
        except OSError:
            await self._runner.cleanup()
            raise
        host, port = self._runner.addresses[0][:2]
        return str(Address(host=host, port=port))

    async def stop(self) -> None:
        """Serve no more."""
        await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let nobody in who is not to see this."""
        if self._token:
            given = request.query.get("token", "")
            if request.path == "/" and self._is_token(given):
                found = web.Response(status=303, headers={"Location": "/", **HEADERS})
                found.set_cookie(COOKIE, given, httponly=True, samesite="Strict")
                return found
            header = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not (self._is_token(header) or self._is_token(request.cookies.get(COOKIE, ""))):
                return web.Response(status=401, text="a token is needed\n", headers=HEADERS)
        elif not self._address.is_unix and not _is_own_name(request.host):
            # A page of some other site, whose name was made to mean this address.
            return web.Response(status=403, text="ask by address, please\n", headers=HEADERS)
        return await handler(request)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    async def _metrics(self, _: web.Request) -> web.Response:
        body = self._exposition.render(self._source.figures())
        kind = "text/plain; version=1.0.0; charset=utf-8"
        return web.Response(body=body, headers={**HEADERS, "Content-Type": kind})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n", headers=HEADERS)

    async def _readiness(self, _: web.Request) -> web.Response:
        if self._source.ready():
            return web.Response(text="ready\n", headers=HEADERS)
        return web.Response(status=503, text="not ready\n", headers=HEADERS)

    async def _static(self, request: web.Request) -> web.Response:
        found = STATIC.get(request.match_info["name"])
        if found is None:
            return web.Response(status=404, text="not found\n", headers=HEADERS)
        name, kind = found
        with as_file(files("smtpproxy.admin") / "static" / name) as path:
            body = path.read_bytes()
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=HEADERS)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self._board.full:
            return web.Response(status=503, text="too many look already\n", headers=HEADERS)
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        looker = self._board.join()
        try:
            while True:
                await response.write(await looker.get())
        except ConnectionError:
            return response
        finally:
            self._board.leave(looker)


def _is_own_name(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name == "localhost":
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
