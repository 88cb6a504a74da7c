"""The tunnel: relays TLS between client and backend, unread, after a forwarded STARTTLS."""

import asyncio
from collections.abc import Callable
from time import monotonic

from smtpproxy.net.unread import UnreadConnections


class Tunnel:
    """Relays octets in both directions until both sides have half-closed, or one is lost.

    Args:
        client: The client connection.
        backend: The backend connection.
        unread: The unread connections of the worker.
        over: Called once with the reason: client_closed after all octets have been relayed, else
            client_lost or backend_lost.  It must close both connections.
    """

    def __init__(
        self,
        client: asyncio.Transport,
        backend: asyncio.Transport,
        unread: UnreadConnections,
        over: Callable[[str], None],
    ) -> None:
        self.active = monotonic()
        """When the last octets were received, on the monotonic clock."""
        self.unread = unread
        self._over: Callable[[str], None] | None = over
        self._ends = self._losses = 0
        self._sides: tuple[_Side, ...] = (
            _Side(self, client, backend, "client_lost"),
            _Side(self, backend, client, "backend_lost"),
        )

    @property
    def from_client(self) -> int:
        """The number of octets relayed from the client."""
        return self._sides[0].octets

    @property
    def from_backend(self) -> int:
        """The number of octets relayed from the backend."""
        return self._sides[1].octets

    def side_ended(self) -> None:
        """Handle the half-close of a side; after both, close when all octets have been sent."""
        self._ends += 1
        if self._ends == 2:
            for side in self._sides:
                side.own.close()

    def side_lost(self, reason: str) -> None:
        """Handle the loss of a side's connection."""
        self._losses += 1
        if self._ends < 2:
            self._end(reason)
        elif self._losses == 2:
            self._end("client_closed")
        if self._losses == 2:
            self._sides = ()  # each knows the tunnel; what they carried is reported by now

    def _end(self, reason: str) -> None:
        if self._over is not None:
            over, self._over = self._over, None
            over(reason)


class _Side(asyncio.Protocol):
    """The protocol of one side, which writes to the other side's connection."""

    def __init__(
        self, tunnel: Tunnel, own: asyncio.Transport, other: asyncio.Transport, lost: str
    ) -> None:
        self._tunnel = tunnel
        self.own = own
        self._other = other
        self._lost = lost
        self.octets = 0
        own.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        self._tunnel.active = monotonic()
        self.octets += len(data)
        if not self._other.is_closing():
            self._other.write(data)

    def eof_received(self) -> bool:
        self._tunnel.unread.add(self.own, self.own.abort)
        if not self._other.is_closing():
            self._other.write_eof()
        self._tunnel.side_ended()
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._tunnel.side_lost(self._lost)

    def pause_writing(self) -> None:
        if not self._other.is_closing():
            self._other.pause_reading()
            self._tunnel.unread.add(self._other, self._other.abort)

    def resume_writing(self) -> None:
        if not self._other.is_closing():
            self._other.resume_reading()
            self._tunnel.unread.discard(self._other)
