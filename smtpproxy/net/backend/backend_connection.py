"""The backend's connection: calls of the event loop, handed on to the session."""

import asyncio
from typing import Protocol, cast

from smtpproxy.net import own_connections
from smtpproxy.net.binding import keep_alive


class BackendEvents(Protocol):
    """What a session does when something happens on its backend connection."""

    def backend_connected(self, backend: asyncio.Transport) -> None:
        """Take the connection."""

    def backend_received(self, octets: bytes) -> None:
        """Take octets from the backend."""

    def backend_blocked(self, *, blocked: bool) -> None:
        """Note whether the backend leaves unread what is sent.  Called inside write."""

    def backend_lost(self, backend: asyncio.Transport) -> None:
        """Take the end of the connection."""


class BackendConnection(asyncio.Protocol):
    """The side that faces the backend; never used for another session (state would leak).

    transport: the one that its octets come from; another one once it is inside TLS.
    """

    # Hot path (bench S2): the loop calls the session itself.
    __slots__ = ("_left", "_session", "data_received", "transport")

    def __init__(self, session: BackendEvents) -> None:
        self._session = session
        self._left = False
        self.data_received = session.backend_received  # type: ignore[method-assign, assignment]  # a slot

    def leave(self) -> None:
        """Keep the session out of it: whatever this server does from now on, it is another's.

        A loop may have the connection ready when the attempt to connect is given up.
        """
        self._left = True
        self.data_received = _discard  # type: ignore[method-assign, assignment]  # a slot

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Give the session its backend connection."""
        self.transport: asyncio.Transport = cast("asyncio.Transport", transport)
        own_connections.note(transport)
        if self._left:
            self.transport.abort()
        else:
            opened = transport.get_extra_info("socket")
            if opened is not None:
                keep_alive(opened)
            self._session.backend_connected(self.transport)

    def eof_received(self) -> None:
        """Take the backend's half-close: it will answer nothing any more."""
        if not self._left:
            self._session.backend_lost(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Take the end of the connection."""
        if not self._left:
            self._session.backend_lost(self.transport)

    def pause_writing(self) -> None:
        """Note that the backend does not take what is sent."""
        if not self._left:
            self._session.backend_blocked(blocked=True)

    def resume_writing(self) -> None:
        """Note that the backend takes octets again."""
        if not self._left:
            self._session.backend_blocked(blocked=False)


def _discard(octets: bytes) -> None:
    """Take what nobody waits for any more."""
