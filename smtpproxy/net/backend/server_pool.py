"""The servers of a backend, their order, and which of them are down."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from time import monotonic

from smtpproxy.config.address import Address
from smtpproxy.net.backend.transport import BackendTransport
from smtpproxy.net.peer import Peer
from smtpproxy.net.proxy_tlvs import ProxyTlvs

ServerChanged = Callable[[str, bool, str], None]
"""Called with the name of a server, whether it is up now, and the reason if not."""
Check = Callable[["Server"], Awaitable[str]]
"""Checks a server; see `smtpproxy.net.backend.health_check.check`."""

OFFER_SETTLES_S = 600.0
"""How long after a change of a server's EHLO reply PIPECONNECT is not offered.

A host name may stand for several machines, whose replies differ.
"""


class Server:
    """One server of a backend; a host name is looked up for each connection.

    Args:
        address: The address in the settings.
        backend_transport: How to connect; None for plain connections.
    """

    __slots__ = (
        "_address",
        "_backend_transport",
        "left_alone_until",
        "name",
        "offer",
        "offer_changed_at",
        "seen_at",
        "sessions",
    )

    def __init__(self, address: Address, backend_transport: BackendTransport | None = None) -> None:
        self._address = address
        by_ip = not (address.is_name or address.is_unix)
        self._backend_transport = backend_transport or (None if by_ip else BackendTransport())
        self.name = str(address)
        """Its address in the settings, as text."""
        self.sessions = 0
        """The number of sessions of this worker that use it, or connect to it."""
        self.left_alone_until = 0.0
        """When it is tried again; 0.0 while it is up."""
        self.seen_at = -inf
        """When it last sent a greeting, or was checked."""
        self.offer: bytes | None = None
        """The capability lines of its last EHLO reply; None if it has sent none since it was down.

        Only known with `early_pipelining`.
        """
        self.offer_changed_at = -inf
        """When its EHLO reply last changed."""

    def add_offer(self, offer: bytes) -> None:
        """Keep the offer that a check has found, unless a client's session has found one."""
        if self.offer is None:
            self.offer = offer

    @property
    def is_one(self) -> bool:
        """Whether it is a fixed server, and not the original target of each client."""
        return not self._address.is_original

    def gets_address_of(self, peer: Peer) -> bool:
        """Return whether the server has the client's address before its greeting.

        If so, a failure before the greeting may concern this client only.
        """
        return not self.is_one or (
            self._backend_transport is not None and self._backend_transport.passes_address_of(peer)
        )

    def address_for(self, peer: Peer) -> Address:
        """Return the server's address; for `original` it is the client's original target."""
        if not self._address.is_original or peer.target is None:
            return self._address
        return Address(*peer.target)

    def name_for(self, peer: Peer) -> str:
        """Return that address as text; if it is fixed, always the same object."""
        address = self.address_for(peer)
        return self.name if address is self._address else str(address)

    async def connect(
        self,
        factory: Callable[[], asyncio.Protocol],
        peer: Peer | None,
        tlvs: Callable[[], ProxyTlvs] | None = None,
    ) -> None:
        """Open a connection.

        Args:
            factory: Makes the protocol of the connection.
            peer: The client; None for the proxy itself.
            tlvs: Returns what a PROXY header says about the client besides its addresses.

        Raises:
            OSError: The server cannot be reached.
            NotForThisClient: It cannot be reached for this client, but may be for others.
        """
        if self._backend_transport is not None:
            await self._backend_transport.connect(self._address, factory, peer, tlvs)
        else:  # half the CPU time of a connected socket
            loop = asyncio.get_running_loop()
            await loop.create_connection(factory, self._address.host, self._address.port)


class ServerPool:
    """The servers of one backend, shared by all sessions of a worker.

    Args:
        servers: The servers, in the order of the settings.
        retry_after: After how many seconds a server that is down is tried again.
        least: Whether to try the server with the fewest sessions first, and of equals the one
            used longest ago, instead of the first one in the settings.
        changed: Called once for each change of a server's health.
        check: Checks a server if a client's failure does not show whether it is down.
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
        """Return all servers in the order to try them.

        Servers that are down are last, so that a client is refused only after all were tried.
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
            # This session tries whether it is up again; the others still avoid it.
            order[0].left_alone_until = now + self._retry_after
        return order

    def attach(self, server: Server) -> None:
        """Count a session that uses a server, or connects to it."""
        server.sessions += 1

    def detach(self, server: Server) -> None:
        """Stop counting a session that `attach` has counted."""
        server.sessions -= 1

    def failed(self, server: Server, why: str) -> None:
        """Mark a server as down, since it could not be reached, or sent no valid greeting."""
        was_up = not server.left_alone_until
        server.offer = None
        server.left_alone_until = monotonic() + self._retry_after
        if was_up:
            self._changed(server.name, False, why)

    def greeted(self, server: Server) -> None:
        """Mark a server as up, since it has sent a greeting."""
        server.seen_at = monotonic()
        if server.left_alone_until:
            server.left_alone_until = 0.0
            self._changed(server.name, True, "")

    def offers(self, server: Server, offer: bytes) -> list[bytes]:
        """Record the capability lines of an EHLO reply, and compare the servers that are up.

        Returns:
            The capability lines of each of them; none if those of one are not known yet, which is
            then checked, or have changed lately.
        """
        if not server.is_one:
            return [offer]  # each target of a client is a server by itself
        now = monotonic()
        if server.offer not in (None, offer):
            server.offer_changed_at = now
        server.offer = offer
        offers = []
        for each in self._servers:
            if each.left_alone_until:
                continue
            if each.offer is None:
                self.request_check(each)
                return []
            if now - each.offer_changed_at < OFFER_SETTLES_S:
                return []
            offers.append(each.offer)
        return offers

    def request_check(self, server: Server) -> None:
        """Start a check of a server, after a failure that may concern one client only.

        It is not checked again within `retry_after` of its last greeting or check, so that
        clients that the server rejects do not cause a check each.
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
            with contextlib.suppress(OSError):  # an error of this machine: no result
                why = await check(server)
                if why:
                    self.failed(server, why)
                else:
                    self.greeted(server)
        finally:
            del self._checking[server]

    def stop(self) -> None:
        """Cancel all checks."""
        for checking in self._checking.values():
            checking.cancel()

    def learn(self, name: str, *, up: bool, alone_s: float = 0.0) -> None:
        """Mark a server as up or down, as another worker reported; `changed` is not called.

        Args:
            name: Its name.
            up: Whether it is up.
            alone_s: How many seconds it is left alone if it is down; at least `retry_after`.
        """
        for server in self._servers:
            if server.name == name:
                alone_s = max(alone_s, self._retry_after)
                server.left_alone_until = 0.0 if up else monotonic() + alone_s
                server.offer = server.offer if up else None


def _sessions(server: Server) -> int:
    return server.sessions
