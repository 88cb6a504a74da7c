"""The servers of a backend: where it can be reached, and where it can't just now."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from time import monotonic

from smtpproxy.config.address import Address
from smtpproxy.net.backend.transport import BackendTransport
from smtpproxy.net.peer import Peer

ServerChanged = Callable[[str, bool, str], None]
"""Is told the name of a server, whether it is up now, and why not."""
Check = Callable[["Server"], Awaitable[str]]
"""Connects to a server as the proxy itself, and returns why it can't be used; see `net.check`."""


class Server:
    """One address of a backend; a name is looked up at each connect.

    sessions: of this worker, on it or on the way to it.
    left_alone_until: when a server that is down is tried again; 0.0 while it is up.
    seen_at: when it greeted last, or was checked.
    """

    __slots__ = (
        "_address",
        "_backend_transport",
        "left_alone_until",
        "name",
        "seen_at",
        "sessions",
    )

    def __init__(self, address: Address, backend_transport: BackendTransport | None = None) -> None:
        self._address = address
        by_ip = not (address.is_name or address.is_unix)
        self._backend_transport = backend_transport or (None if by_ip else BackendTransport())
        self.name = str(address)
        self.sessions = 0
        self.left_alone_until = 0.0
        self.seen_at = -inf

    @property
    def is_one(self) -> bool:
        """Whether this is one server, and not whichever each client wants."""
        return not self._address.is_original

    def is_told_of(self, peer: Peer) -> bool:
        """Tell whether it knows who the client is before it greets.

        If so, whatever becomes of the connection until then may be about this client alone.
        """
        return not self.is_one or (
            self._backend_transport is not None and self._backend_transport.tells(peer)
        )

    def address_for(self, peer: Peer) -> Address:
        """Return the address: the one that the client wanted, if it is to be that."""
        if not self._address.is_original or peer.target is None:
            return self._address
        return Address(*peer.target)

    def name_for(self, peer: Peer) -> str:
        """Return this address as text, the same object for all sessions where it is the same."""
        address = self.address_for(peer)
        return self.name if address is self._address else str(address)

    async def connect(self, factory: Callable[[], asyncio.Protocol], peer: Peer | None) -> None:
        """Open a connection for a client, or with None for the proxy itself.

        Raises OSError if the server can't be reached; NotForThisClient if perhaps others can.
        """
        if self._backend_transport is not None:
            await self._backend_transport.connect(self._address, factory, peer)
        else:  # half the CPU time of a socket of our own
            loop = asyncio.get_running_loop()
            await loop.create_connection(factory, self._address.host, self._address.port)


class ServerPool:
    """The servers of one backend, shared by all sessions of a worker.

    retry_after: how many seconds one that has failed is left alone.
    least: the one with the fewest sessions comes first, instead of the first one named; of equals,
        the one whose turn was longest ago.
    changed: is called once for each change, not for each session that finds a server down.
    check: finds out whether a server is there, where what a client met does not tell.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        retry_after: float = 10.0,
        *,
        least: bool = False,
        changed: ServerChanged,
        check: Check | None = None,
    ) -> None:
        self._servers = tuple(servers)
        self._retry_after = retry_after
        self._least = least
        self._changed = changed
        self._check = check
        self._checking: dict[Server, asyncio.Task[None]] = {}

    def in_order(self) -> list[Server]:
        """Return all, those to be tried first at the front.

        Those that are left alone come last: a client is not refused before all have been tried.
        """
        order = list(self._servers)
        if len(order) == 1:
            return order
        if self._least:
            order.sort(key=_sessions)
        now = monotonic()
        alone = [server for server in order if server.left_alone_until > now]
        if alone:
            order = [server for server in order if server.left_alone_until <= now] + alone
        if self._least:
            self._servers = (*(each for each in self._servers if each is not order[0]), order[0])
        if order[0].left_alone_until:
            # This session finds out whether it is back; the others go on without it meanwhile.
            order[0].left_alone_until = now + self._retry_after
        return order

    def failed(self, server: Server, why: str) -> None:
        """Leave a server alone: it could not be reached, or had no greeting for anybody."""
        was_up = not server.left_alone_until
        server.left_alone_until = monotonic() + self._retry_after
        if was_up:
            self._changed(server.name, False, why)

    def greeted(self, server: Server) -> None:
        """Follow a greeting: the server is there (again)."""
        server.seen_at = monotonic()
        if server.left_alone_until:
            server.left_alone_until = 0.0
            self._changed(server.name, True, "")

    def doubt(self, server: Server) -> None:
        """Check whether a server is there: it was not for one client, whom it may have known.

        Not if it has greeted somebody just now, and not again and again: clients that it does not
        want are no reason to connect to it for each of them.
        """
        now = monotonic()
        if self._check is None or not server.is_one or server in self._checking:
            return
        if now - server.seen_at < self._retry_after:
            return
        server.seen_at = now
        checking = asyncio.get_running_loop().create_task(self._check_now(server, self._check))
        self._checking[server] = checking

    async def _check_now(self, server: Server, check: Check) -> None:
        try:
            with contextlib.suppress(OSError):  # this machine's own trouble tells nothing
                why = await check(server)
                if why:
                    self.failed(server, why)
                else:
                    self.greeted(server)
        finally:
            del self._checking[server]

    def stop(self) -> None:
        """Check no server any more."""
        for checking in self._checking.values():
            checking.cancel()

    def learn(self, name: str, *, up: bool) -> None:
        """Take it from somebody else that a server is up or down; nobody is told."""
        for server in self._servers:
            if server.name == name:
                server.left_alone_until = 0.0 if up else monotonic() + self._retry_after


def _sessions(server: Server) -> int:
    return server.sessions
