"""The client connection: passes the event loop's callbacks to the session."""

import asyncio
from typing import TYPE_CHECKING, cast

from smtpproxy.net.peer import Peer
from smtpproxy.net.session import Session

if TYPE_CHECKING:
    from smtpproxy.net.listener_context import ListenerContext
    from smtpproxy.net.shared_counters import CounterSlots


class ClientConnection(asyncio.Protocol):
    """The protocol of a client connection.

    Args:
        listener_context: The context of its listener.
        peer: The client; None to read its address from the connection.
        counter_slots: Its counter slots, if the client has been admitted already.
    """

    __slots__ = ("_counter_slots", "_listener_context", "_peer", "_session")

    def __init__(
        self,
        listener_context: "ListenerContext",
        peer: Peer | None = None,
        counter_slots: "CounterSlots | None" = None,
    ) -> None:
        self._listener_context = listener_context
        self._peer = peer
        self._counter_slots = counter_slots

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the session; octets from the client wait until the backend's greeting."""
        opened = cast("asyncio.Transport", transport)
        peer = self._peer or recognized(self._listener_context, opened)
        if peer is not None:
            self._begin(opened, peer)

    def restart(self, transport: asyncio.Transport, peer: Peer, *, secure: bool) -> None:
        """Start a session of another client on the same connection, after XCLIENT.

        Args:
            transport: The transport of the connection.
            peer: The client that XCLIENT named.
            secure: Whether the connection is inside TLS.
        """
        self._leave()
        self._begin(transport, peer, secure=secure)

    def _begin(self, transport: asyncio.Transport, peer: Peer, *, secure: bool = False) -> None:
        admission = self._listener_context.admission
        if admission is not None and self._counter_slots is None:
            opened = transport.get_extra_info("socket")
            self._counter_slots = admission.enter(peer.host, opened.fileno() if opened else -1)
            if self._counter_slots is None:
                turn_away(transport, admission.refusal)
                return
        self._session = Session(self._listener_context, transport, peer, secure=secure)

    def data_received(self, data: bytes) -> None:
        """Process octets from the client."""
        self._session.client_received(data)

    def eof_received(self) -> bool:
        """Process the client's half-close; return True to keep the other direction for replies."""
        return self._session.client_eof()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """End the session after the loss of the connection."""
        self._session.client_lost()
        self._leave()

    def _leave(self) -> None:
        if self._counter_slots is not None and self._listener_context.admission is not None:
            self._listener_context.admission.leave(self._counter_slots)
            self._counter_slots = None

    def pause_writing(self) -> None:
        """Report that the client does not read its replies."""
        self._session.client_blocked(blocked=True)

    def resume_writing(self) -> None:
        """Report that the client reads its replies again."""
        self._session.client_blocked(blocked=False)


def recognized(listener_context: "ListenerContext", transport: asyncio.Transport) -> Peer | None:
    """Return the client of a connection, or abort the connection and return None.

    The address of a client cannot be read if it has reset the connection already.
    """
    peer = Peer.of(transport)
    if peer is None:
        transport.set_protocol(asyncio.Protocol())
        transport.abort()
        if listener_context.admission is not None:
            listener_context.admission.lost()
    return peer


def turn_away(transport: asyncio.Transport, reply: bytes) -> None:
    """Refuse a client: send a reply and close."""
    transport.set_protocol(asyncio.Protocol())
    transport.write(reply)
    transport.close()
