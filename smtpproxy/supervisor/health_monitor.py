"""Active health checks of servers: a connection that waits for the greeting, then QUIT.

With `health_check_interval` the servers of a backend are checked all the time.  If readiness is
queried, the servers of the other backends are checked too: once at the start, and while they are
down, so that they are used again even without traffic.  These checks run if there is an admin
address, and after the first query at the control socket.

A server that another replica of the cluster found down, or up again, is checked once.
"""

import asyncio
import contextlib
from collections.abc import Callable

from smtpproxy.config.address import Address
from smtpproxy.config.schema import Settings
from smtpproxy.net.backend.health_check import LONGEST_S, check
from smtpproxy.net.backend.server_pool import Server
from smtpproxy.net.backend.transport import BackendTransport
from smtpproxy.worker import security_builder
from smtpproxy.worker.control_messages import Health

WAIT_S = 2.0
"""How long a readiness query may wait for the first checks."""


class HealthMonitor:
    """Checks the servers of the backends.

    Args:
        found: Called with the result of each check.
        is_down: Returns whether a server, given backend and address, is considered down.
    """

    def __init__(
        self, found: Callable[[Health], None], is_down: Callable[[str, str], bool]
    ) -> None:
        self._found = found
        self._is_down = is_down
        self._tasks: list[asyncio.Task[None]] = []
        self._checking: dict[tuple[str, str], asyncio.Task[bool]] = {}  # the last `check_once`
        self._settings = Settings()
        self._transports: dict[str, BackendTransport | None] = {}  # by backend
        self._asked = False
        self._checked: set[tuple[str, str]] = set()
        self._unchecked: dict[tuple[str, str], asyncio.Event] = {}

    def apply(self, settings: Settings) -> None:
        """Apply new settings."""
        self.stop()
        self._settings = settings
        self._transports.clear()
        self._unchecked.clear()
        asked = self._asked or settings.admin.address != Address()
        for name, backend in settings.backends.items():
            if not backend.health_check_interval and not asked:
                continue
            for address in backend.servers:
                if not address.is_original:
                    if (name, str(address)) not in self._checked:
                        self._unchecked[name, str(address)] = asyncio.Event()
                    watching = self._watch(name, address)
                    self._tasks.append(asyncio.create_task(watching, name=f"check {address}"))

    async def _watch(self, name: str, address: Address) -> None:
        backend = self._settings.backends[name]
        interval = backend.health_check_interval or backend.retry_after
        limit_s = min(backend.health_check_interval or LONGEST_S, LONGEST_S)
        due = True
        while True:
            if due:
                is_checked = await self._check(name, address, limit_s)
                due = not is_checked or backend.health_check_interval > 0
            await asyncio.sleep(interval)  # until the next check
            due = due or self._is_down(name, str(address))

    def check_once(self, name: str, server: str) -> None:
        """Start a check of a server, unless one is under way.

        Args:
            name: The backend.
            server: The server's address in the settings.
        """
        backend = self._settings.backends.get(name)
        addresses = [each for each in backend.servers if str(each) == server] if backend else []
        last = self._checking.get((name, server))
        if addresses and (last is None or last.done()):
            self._checking[name, server] = asyncio.create_task(
                self._check(name, addresses[0], LONGEST_S), name=f"check {server} once"
            )

    async def _check(self, name: str, address: Address, limit_s: float) -> bool:
        """Check a server; return whether there is a result."""
        settings = self._settings
        try:
            if name not in self._transports:
                transport = security_builder.backend_transport(settings, settings.backends[name])
                self._transports[name] = transport
            server = Server(address, self._transports[name])
            why = await check(server, settings.hostname, limit_s)
        except OSError:  # an error of this machine, such as a certificate file that is gone
            return False
        self._found(Health(name, server.name, not why, why))
        self._checked.add((name, server.name))
        if (first := self._unchecked.pop((name, server.name), None)) is not None:
            first.set()
        return True

    async def wait(self) -> None:
        """Wait until each server has been checked once, at most `WAIT_S`."""
        if not self._asked:
            self._asked = True
            if self._settings.admin.address == Address():  # else they run already
                self.apply(self._settings)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                for each in list(self._unchecked.values()):
                    await each.wait()

    def why_not_ready(self, backend: str = "") -> str:
        """Return why the service, or one backend, is not ready.

        The service is ready if, as `admin.ready` requires, all or any of the backends that
        listeners use have a server that is up.

        Args:
            backend: The backend; empty for the service.

        Returns:
            The reason, or empty if it is ready.

        Raises:
            KeyError: There is no such backend.
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
        """Stop all checks."""
        for task in (*self._tasks, *self._checking.values()):
            task.cancel()
        self._tasks.clear()
        self._checking.clear()
