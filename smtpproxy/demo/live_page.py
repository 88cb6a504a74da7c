"""The live page of `smtpproxy demo --serve --admin`, for the proxy in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from smtpproxy.admin.http_server import AdminServer
from smtpproxy.config.loader import from_flags
from smtpproxy.demo.harness import ANY_PORT, running
from smtpproxy.metrics import definitions
from smtpproxy.metrics.snapshot import MetricsSnapshot
from smtpproxy.net import binding
from smtpproxy.worker.app import App


@asynccontextmanager
async def proxy_with_page(backend: str, admin: str, listeners: list[str]) -> AsyncIterator[str]:
    """Run the real proxy in this process, and its live page; yield the proxy's address.

    Args:
        backend: The MTA's address, HOST:PORT.
        admin: The address of the page.
        listeners: The addresses for clients that the page shows; may be filled later.

    Raises:
        ConfigError: `admin` is no address for the page.
        OSError: It is in use.
    """
    settings = from_flags(None, [ANY_PORT], [backend], None, "error", admin=admin)
    sockets = binding.listen(settings.admin.address)
    try:
        async with running(App(settings)) as app:
            page = AdminServer("", _Status(app, settings.instance, backend, listeners))
            await page.start(sockets)
            try:
                yield app.addresses[0]
            finally:
                await page.stop()
    finally:
        binding.close(sockets, settings.admin.address)


class _Status:
    """What the live page shows: the proxy of this process."""

    def __init__(self, app: App, instance: str, backend: str, listeners: list[str]) -> None:
        self.instance = instance
        self._listeners = listeners
        self.serving_since = monotonic()
        self._app = app
        self._backend = backend

    def snapshot(self) -> MetricsSnapshot:
        """Return the metrics of the proxy."""
        snapshot = self._app.snapshot()
        snapshot.put(definitions.WORKERS, 1)
        snapshot.put(definitions.SERVER_UP, 1, "backend-1", self._backend)
        return snapshot

    def look(self, *, full: bool = False) -> None:
        """Include sessions in the snapshots for a while, since the page is open."""
        self._app.look(full)

    def listeners(self) -> list[str]:
        """Return the addresses for clients: of the simulated network in front of the proxy."""
        return self._listeners

    def faults(self) -> list[str]:
        """Return nothing: the demo injects no faults."""
        return []

    def why_not_ready(self, backend: str = "") -> str:
        """Return nothing: the proxy is ready."""
        if backend not in ("", "backend-1"):
            raise KeyError(backend)
        return ""

    async def wait_for_checks(self) -> None:
        """Return at once."""
