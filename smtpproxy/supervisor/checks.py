"""Active checks: one greeting at a time for each server of a backend that asks for it."""

import asyncio
from collections.abc import Callable

from smtpproxy import wiring
from smtpproxy.control import Health
from smtpproxy.net.check import check
from smtpproxy.net.servers import Server
from smtpproxy.settings import Backend, Settings

LONGEST_S = 30.0
"""How long a check may take, if it is not to be repeated earlier."""


class Checks:
    """Checks the servers of the service's backends, each every `check_every` seconds."""

    def __init__(self, found: Callable[[Health], None]) -> None:
        self._found = found
        self._tasks: list[asyncio.Task[None]] = []

    def settle(self, settings: Settings) -> None:
        """Follow new settings."""
        self.stop()
        for name, backend in settings.backends.items():
            if backend.check_every:
                route = wiring.route(settings, backend)
                for address in backend.servers:
                    server = Server(address, route)
                    watching = self._watch(name, server, backend, settings.hostname)
                    self._tasks.append(asyncio.create_task(watching, name=f"check {address}"))

    async def _watch(self, name: str, server: Server, backend: Backend, hostname: str) -> None:
        while True:
            why = await check(server, hostname, min(backend.check_every, LONGEST_S))
            self._found(Health(name, server.name, not why, why))
            await asyncio.sleep(backend.check_every)

    def stop(self) -> None:
        """Check nothing any more."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
