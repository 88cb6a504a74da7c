"""The client's connection: calls of the event loop, handed on to the session."""

import asyncio
from typing import TYPE_CHECKING, cast

from smtpproxy.net.peer import Peer
from smtpproxy.net.session import Session

if TYPE_CHECKING:
    from smtpproxy.net.listener_context import ListenerContext
    from smtpproxy.net.shared_counters import CounterSlots


class ClientConnection(asyncio.Protocol):
    """The side that faces the client.

    peer: who it is, if its connection doesn't tell.  counter_slots: where it was counted already.
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
        """Begin a session; what the client sends early waits until the backend has greeted."""
        opened = cast("asyncio.Transport", transport)
        peer = self._peer or recognized(self._listener_context, opened)
        if peer is not None:
            self._begin(opened, peer)

    def begin_anew(self, transport: asyncio.Transport, peer: Peer, *, secure: bool) -> None:
        """Begin a session of another client, for whom the one that connected speaks from now on.

        `secure` tells whether the connection is inside TLS.
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
        """Take octets from the client."""
        self._session.client_received(data)

    def eof_received(self) -> bool:
        """Take the client's half-close; True keeps the other half, so that replies can be given."""
        return self._session.client_eof()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Take the end of the connection, and of its session."""
        self._session.client_lost()
        self._leave()

    def _leave(self) -> None:
        if self._counter_slots is not None and self._listener_context.admission is not None:
            self._listener_context.admission.leave(self._counter_slots)
            self._counter_slots = None

    def pause_writing(self) -> None:
        """Note that the client does not read its replies."""
        self._session.client_blocked(blocked=True)

    def resume_writing(self) -> None:
        """Note that the client reads again."""
        self._session.client_blocked(blocked=False)


def recognized(listener_context: "ListenerContext", transport: asyncio.Transport) -> Peer | None:
    """Return who has connected; None if that can't be told, and then the connection is closed.

    Whoever resets it at once has left nothing to tell it by, and waits for nothing.
    """
    peer = Peer.of(transport)
    if peer is None:
        transport.set_protocol(asyncio.Protocol())
        transport.abort()
        if listener_context.admission is not None:
            listener_context.admission.lost()
    return peer


def turn_away(transport: asyncio.Transport, reply: bytes) -> None:
    """Tell a client that it is not served, and be done with it."""
    transport.set_protocol(asyncio.Protocol())
    transport.write(reply)
    transport.close()
