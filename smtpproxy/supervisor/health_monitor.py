"""Active checks: one greeting at a time for each server of a backend that asks for it.

Where somebody may ask whether the service is ready, the servers of other backends are checked too:
at the start, and while they are down, since without clients nobody else would find them back.
"""

import asyncio
from collections.abc import Callable

from smtpproxy.config.address import Address
from smtpproxy.config.schema import BackendSettings, Settings
from smtpproxy.net.backend.health_check import LONGEST_S, check
from smtpproxy.net.backend.server_pool import Server
from smtpproxy.worker import security_builder
from smtpproxy.worker.control_messages import Health


class HealthMonitor:
    """Checks the servers of the service's backends.

    found: is told what each check has found.
    is_down: whether a server of a backend is believed to be down.
    """

    def __init__(
        self, found: Callable[[Health], None], is_down: Callable[[str, str], bool]
    ) -> None:
        self._found = found
        self._is_down = is_down
        self._tasks: list[asyncio.Task[None]] = []

    def settle(self, settings: Settings) -> None:
        """Follow new settings."""
        self.stop()
        for name, backend in settings.backends.items():
            if not backend.health_check_interval and settings.admin.address == Address():
                continue
            backend_transport = security_builder.backend_transport(settings, backend)
            for address in backend.servers:
                if not address.is_original:
                    watching = self._watch(
                        name, Server(address, backend_transport), backend, settings.hostname
                    )
                    self._tasks.append(asyncio.create_task(watching, name=f"check {address}"))

    async def _watch(
        self, name: str, server: Server, backend: BackendSettings, hostname: str
    ) -> None:
        interval = backend.health_check_interval or backend.retry_after
        limit_s = min(backend.health_check_interval or LONGEST_S, LONGEST_S)
        due = True
        while True:
            if due:
                due = backend.health_check_interval > 0
                try:
                    why = await check(server, hostname, limit_s)
                except OSError:
                    due = True  # nothing was found out
                else:
                    self._found(Health(name, server.name, not why, why))
            await asyncio.sleep(interval)
            due = due or self._is_down(name, server.name)

    def stop(self) -> None:
        """Check nothing any more."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
