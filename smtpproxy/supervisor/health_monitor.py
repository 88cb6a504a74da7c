"""Active checks: one greeting at a time for each server of a backend that asks for it.

Where somebody asks whether the service is ready, the servers of other backends are checked too:
at the start, and while they are down, since without clients nobody else would find them back.  With
an admin address somebody will; at the control socket the first one who asks begins it.
"""

import asyncio
import contextlib
from collections.abc import Callable

from smtpproxy.config.address import Address
from smtpproxy.config.schema import BackendSettings, Settings
from smtpproxy.net.backend.health_check import LONGEST_S, check
from smtpproxy.net.backend.server_pool import Server
from smtpproxy.worker import security_builder
from smtpproxy.worker.control_messages import Health

WAIT_S = 2.0
"""How long who asks may wait for the first checks."""


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
        self._settings = Settings()
        self._asked = False
        self._checked: set[tuple[str, str]] = set()
        self._unchecked: dict[tuple[str, str], asyncio.Event] = {}

    def settle(self, settings: Settings) -> None:
        """Follow new settings."""
        self.stop()
        self._settings = settings
        self._unchecked.clear()
        asked = self._asked or settings.admin.address != Address()
        for name, backend in settings.backends.items():
            if not backend.health_check_interval and not asked:
                continue
            backend_transport = security_builder.backend_transport(settings, backend)
            for address in backend.servers:
                if not address.is_original:
                    if (name, str(address)) not in self._checked:
                        self._unchecked[name, str(address)] = asyncio.Event()
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
                    self._note((name, server.name))
            await asyncio.sleep(interval)
            due = due or self._is_down(name, server.name)

    def _note(self, server: tuple[str, str]) -> None:
        self._checked.add(server)
        if (first := self._unchecked.pop(server, None)) is not None:
            first.set()

    async def wait(self) -> None:
        """Wait until each server has been checked once, but no longer than `WAIT_S`."""
        if not self._asked:
            self._asked = True
            self.settle(self._settings)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                for each in list(self._unchecked.values()):
                    await each.wait()

    def why_not_ready(self, backend: str = "") -> str:
        """Return why no server of a backend can be used, or of those that clients need.

        Empty if one can.  `admin.ready` says whether clients need each backend that a listener
        names, or any of them.  Raises KeyError if there is no such backend.
        """
        if backend:
            return self._why_not(backend)
        needed = {each.backend for each in self._settings.listeners.values()}
        found = [self._why_not(name) for name in sorted(needed)]
        if self._settings.admin.ready == "any" and "" in found:
            return ""
        return "; ".join(filter(None, found))

    def _why_not(self, backend: str) -> str:
        servers = self._settings.backends[backend].servers
        maybe = [each for each in servers if not self._is_down(backend, str(each))]
        if not maybe:
            return f"no server of {backend} is up"
        if any(each.is_original or (backend, str(each)) in self._checked for each in maybe):
            return ""
        return f"the servers of {backend} have not been checked yet"

    def stop(self) -> None:
        """Check nothing any more."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
