"""The tunnel: from the backend's 220 to a STARTTLS that was passed on, octets are only carried.

Nothing of the protocol is left: whatever is inside TLS is between the client and the backend.
"""

import asyncio
from collections.abc import Callable
from time import monotonic

from smtpproxy.net.unread import UnreadConnections


class Tunnel:
    """Carries octets both ways until both sides have said that there are no more, or one is gone.

    `over` is called once, with the reason: client_closed when all has reached both sides, else
    client_lost or backend_lost.  It closes what is open.

    active: when an octet came last, by the clock.
    from_client, from_backend: how many octets were carried.
    """

    def __init__(
        self,
        client: asyncio.Transport,
        backend: asyncio.Transport,
        unread: UnreadConnections,
        over: Callable[[str], None],
    ) -> None:
        self.active = monotonic()
        self.unread = unread
        self._over: Callable[[str], None] | None = over
        self._ends = self._losses = 0
        self._sides = (
            _Side(self, client, backend, "client_lost"),
            _Side(self, backend, client, "backend_lost"),
        )

    @property
    def from_client(self) -> int:
        return self._sides[0].octets

    @property
    def from_backend(self) -> int:
        return self._sides[1].octets

    def side_ended(self) -> None:
        """Note that a side sends no more.  After both, what is on its way still goes out."""
        self._ends += 1
        if self._ends == 2:
            for side in self._sides:
                side.own.close()

    def side_lost(self, reason: str) -> None:
        """Note that the connection of a side is over."""
        self._losses += 1
        if self._ends < 2:
            self._end(reason)
        elif self._losses == 2:
            self._end("client_closed")

    def _end(self, reason: str) -> None:
        if self._over is not None:
            over, self._over = self._over, None
            over(reason)


class _Side(asyncio.Protocol):
    """One side, with its own connection; what it sends goes to the other one's."""

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
