"""The backend connection: passes the event loop's callbacks to the session."""

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from smtpproxy.net import own_connections
from smtpproxy.net.binding import keep_connection_alive

QUIT_LIMIT_S = 0.5
"""How long a server may take to reply to the proxy's own QUIT."""


class BackendEvents(Protocol):
    """The callbacks of a session for its backend connection."""

    def backend_connected(self, backend: asyncio.Transport) -> None:
        """Start to use the connection."""

    def backend_received(self, octets: bytes) -> None:
        """Process octets from the backend."""

    def backend_blocked(self, *, blocked: bool) -> None:
        """Handle that the backend does not read, or does again; may be called inside `write`."""

    def backend_lost(self, backend: asyncio.Transport) -> None:
        """Handle the end or the loss of the connection."""


class BackendConnection(asyncio.Protocol):
    """The protocol of a backend connection.

    A connection is never reused for another session, since state could leak.

    Args:
        session: Gets the events.
    """

    # Hot path (bench S2): the loop calls the session itself.
    __slots__ = ("_session", "_transport", "data_received")

    def __init__(self, session: BackendEvents) -> None:
        self._session: BackendEvents | None = session
        self._transport: asyncio.Transport | None = None
        self.data_received = session.backend_received  # type: ignore[method-assign, assignment]  # a slot

    def leave(self) -> None:
        """Detach from the session, and abort the connection if it is made after all.

        The event loop may have made the connection already when an attempt is cancelled.
        """
        self.data_received = _discard  # type: ignore[method-assign, assignment]  # a slot
        # A loop that has not called connection_lost keeps this object, and the other way round.
        self._session = self._transport = None

    def secured(self, inside: asyncio.Transport) -> None:
        """Go on with the transport inside TLS, which octets come from now."""
        self._transport = inside

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Record the connection for loop detection, and pass it to the session."""
        connected = cast("asyncio.Transport", transport)
        by_ip = own_connections.note(transport)
        if self._session is None:
            connected.abort()
        else:
            self._transport = connected
            opened = transport.get_extra_info("socket") if by_ip else None
            if opened is not None:
                keep_connection_alive(opened.fileno())
            self._session.backend_connected(connected)

    def eof_received(self) -> None:
        """Treat the backend's half-close as the end, since no more replies can follow."""
        if self._session is not None and self._transport is not None:
            self._session.backend_lost(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Report the loss of the connection."""
        if self._session is not None and self._transport is not None:
            self._session.backend_lost(self._transport)

    def pause_writing(self) -> None:
        """Report that the backend does not read."""
        if self._session is not None:
            self._session.backend_blocked(blocked=True)

    def resume_writing(self) -> None:
        """Report that the backend reads again."""
        if self._session is not None:
            self._session.backend_blocked(blocked=False)


class QuittingConnection(asyncio.Protocol):
    """A backend connection after its session: sends QUIT, and closes after the reply.

    Without it, MTAs would log each client that goes away as an error.

    Args:
        transport: The connection; the server owes no reply, and no transaction is open.
        over: Called once, when the connection is closed.
    """

    def __init__(self, transport: asyncio.Transport, over: Callable[[], None]) -> None:
        self._transport = transport
        self._over = over
        transport.set_protocol(self)
        transport.write(b"QUIT\r\n")
        loop = asyncio.get_running_loop()
        self._limit = loop.call_later(QUIT_LIMIT_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Close after the reply; a reset by an earlier close would be an error, too."""
        if data.endswith(b"\n"):
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Report that the connection is closed."""
        self._limit.cancel()
        self._over()
        del self._over, self._transport  # which may know this object


def _discard(octets: bytes) -> None:
    """Discard octets after `leave`."""
