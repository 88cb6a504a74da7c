"""The servers of a backend: where it can be reached, and where it can't just now."""

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic

from smtpproxy.config.address import Address
from smtpproxy.net.backend.transport import BackendTransport
from smtpproxy.net.peer import Peer

ServerChanged = Callable[[str, bool, str], None]
"""Is told the name of a server, whether it is up now, and why not."""


class Server:
    """One address of a backend; a name is looked up at each connect.

    sessions: of this worker, on it or on the way to it.
    left_alone_until: when a server that is down is tried again; 0.0 while it is up.
    """

    __slots__ = ("_address", "_backend_transport", "left_alone_until", "name", "sessions")

    def __init__(self, address: Address, backend_transport: BackendTransport | None = None) -> None:
        self._address = address
        by_ip = not (address.is_name or address.is_unix)
        self._backend_transport = backend_transport or (None if by_ip else BackendTransport())
        self.name = str(address)
        self.sessions = 0
        self.left_alone_until = 0.0

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

        Raises OSError if the server can't be reached.
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
    """

    def __init__(
        self,
        servers: Sequence[Server],
        retry_after: float = 10.0,
        *,
        least: bool = False,
        changed: ServerChanged,
    ) -> None:
        self._servers = tuple(servers)
        self._retry_after = retry_after
        self._least = least
        self._changed = changed

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
        """Leave a server alone: it could not be reached, or had no greeting for a client."""
        was_up = not server.left_alone_until
        server.left_alone_until = monotonic() + self._retry_after
        if was_up:
            self._changed(server.name, False, why)

    def greeted(self, server: Server) -> None:
        """Follow a greeting: the server is there (again)."""
        if server.left_alone_until:
            server.left_alone_until = 0.0
            self._changed(server.name, True, "")

    def learn(self, name: str, *, up: bool) -> None:
        """Take it from somebody else that a server is up or down; nobody is told."""
        for server in self._servers:
            if server.name == name:
                server.left_alone_until = 0.0 if up else monotonic() + self._retry_after


def _sessions(server: Server) -> int:
    return server.sessions
