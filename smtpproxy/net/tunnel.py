"""The tunnel: from the backend's 220 to a STARTTLS that was passed on, octets are only carried.

Nothing of the protocol is left: whatever is inside TLS is between the client and the backend.
"""

import asyncio
from collections.abc import Callable
from time import monotonic


class Tunnel:
    """Carries octets both ways until both sides have said that there are no more.

    active: when an octet came last, by the clock.
    from_client, from_backend: how many octets were carried.
    """

    def __init__(
        self,
        client: asyncio.Transport,
        backend: asyncio.Transport,
        over: Callable[[], None],
    ) -> None:
        self.active = monotonic()
        self._over: Callable[[], None] | None = over
        self._ends = 0
        self._sides = _Side(self, backend), _Side(self, client)
        client.set_protocol(self._sides[0])
        backend.set_protocol(self._sides[1])

    @property
    def from_client(self) -> int:
        return self._sides[0].octets

    @property
    def from_backend(self) -> int:
        return self._sides[1].octets

    def end(self, *, lost: bool) -> None:
        """Note that a side sends no more, or is gone."""
        self._ends += 1
        if self._over is not None and (lost or self._ends == 2):
            over, self._over = self._over, None
            over()


class _Side(asyncio.Protocol):
    """One side; what it sends goes to `other`, as fast as that takes it."""

    def __init__(self, tunnel: Tunnel, other: asyncio.Transport) -> None:
        self._tunnel = tunnel
        self._other = other
        self.octets = 0

    def data_received(self, data: bytes) -> None:
        self._tunnel.active = monotonic()
        self.octets += len(data)
        if not self._other.is_closing():
            self._other.write(data)

    def eof_received(self) -> bool:
        if not self._other.is_closing():
            self._other.write_eof()
        self._tunnel.end(lost=False)
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._tunnel.end(lost=True)

    def pause_writing(self) -> None:
        if not self._other.is_closing():
            self._other.pause_reading()

    def resume_writing(self) -> None:
        if not self._other.is_closing():
            self._other.resume_reading()
