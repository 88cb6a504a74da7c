"""The selection of a server: one session's way to a server of its backend that greets it.

First a place, where there are not enough for all.  Then a server: one that can't be reached, or
that refuses with its greeting, makes way for the next one; never once the client has been greeted,
for then the session is that server's.
"""

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from smtpproxy.core.replies import ReplyReader
from smtpproxy.core.violations import BackendViolation
from smtpproxy.net import own_connections
from smtpproxy.net.backend.backend_connection import BackendConnection, BackendEvents
from smtpproxy.tls.error_text import OUR_OWN, NotForThisClient, error_text

if TYPE_CHECKING:
    from smtpproxy.net.backend.server_pool import Server
    from smtpproxy.net.listener_context import ListenerContext
    from smtpproxy.net.peer import Peer

_NOBODY: list["Server"] = []


class SelectingSession(BackendEvents, Protocol):
    """A session that is on its way to a server."""

    client: asyncio.Transport

    def refuse_loop(self) -> None:
        """Refuse the client: it is one of the service's own connections to a server."""

    def connection_slot_answered(self, *, granted: bool) -> None:
        """Take the answer to the request for a connection slot at the backend."""

    def reclaim_slot(self) -> None:
        """Make room for a client of another address, between transactions."""

    def give_up_server(self, why: str, now: float) -> None:
        """Go on to the next server: this one could not be reached."""

    def note_given_up(self, server: str, why: str) -> None:
        """Report a server that refused the client and was the last one."""


class ServerSelection:
    """Made for one session, which asks it for the next server and hands it the greeting.

    waits: for a place at the backend.
    server: the one that was tried last.
    refusal: the greeting of the last one, if it refused; else empty.
    open: the server has not greeted, so that what it says is to be handed over.
    more: another server may still take the session.
    """

    __slots__ = (
        "_connecting",
        "_connection",
        "_connection_slots",
        "_left",
        "_listener_context",
        "_peer",
        "_reader",
        "_session",
        "open",
        "refusal",
        "server",
        "waits",
    )

    def __init__(
        self, session: SelectingSession, listener_context: "ListenerContext", peer: "Peer"
    ) -> None:
        self._session = session
        self._listener_context = listener_context
        self._connection_slots = listener_context.connection_slots
        self._peer = peer
        self._left: list[Server] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._connection: BackendConnection | None = None
        self._reader: ReplyReader | None = None
        self.server: Server | None = None
        self.refusal = b""
        self.open = True
        self.waits = False

    def begin(self) -> None:
        """Ask for a place, if need be; the session is told when servers can be tried."""
        if self._connection_slots is None:
            self._session.connection_slot_answered(granted=True)
            return
        self.waits = True
        admission, host = self._listener_context.admission, self._peer.host
        address = host.encode() if admission is None else admission.address_of(host)
        self._connection_slots.ask(self, address)

    def reclaim_slot(self) -> None:
        """Have the session make room for another one."""
        self._session.reclaim_slot()

    def slot_answered(self, *, granted: bool) -> None:
        """Take the answer to the request for a connection slot."""
        self.waits = False
        self._session.connection_slot_answered(granted=granted)

    @property
    def more(self) -> bool:
        """Tell whether another server may still take the session."""
        return self._left is None or bool(self._left)

    def try_next(self) -> bool:
        """Begin to connect to the next server; False if there is none left."""
        self._reader = None
        if self._left is None:
            self._left = self._listener_context.servers.in_order()
        if not self._left:
            return False
        server = self.server = self._left.pop(0)
        server.sessions += 1
        connection = self._connection = BackendConnection(self._session)
        self._connecting = asyncio.get_running_loop().create_task(
            self._connect(server, connection), name=server.name
        )
        return True

    async def _connect(self, server: "Server", connection: BackendConnection) -> None:
        session = self._session
        if own_connections.is_one(session.client):  # noted by now: its own side has had its turn
            self._connecting = None
            session.refuse_loop()
            return
        try:
            await server.connect(lambda: connection, self._peer)
        except OSError as error:
            self._connecting = None
            why = error_text(error)
            if isinstance(error, NotForThisClient):
                self._listener_context.servers.doubt(server)
            elif error.errno not in OUR_OWN:
                self._listener_context.servers.failed(server, why)
            session.give_up_server(why, monotonic())
        else:
            self._connecting = None

    def receive(self, octets: bytes) -> tuple[bytes, str]:
        """Take what a server says before it has greeted.

        Return what the pipeline is to get, and why this server is to be given up, if it is.
        """
        reader = self._reader = self._reader or ReplyReader()
        reader.receive(octets)
        octets = bytes(reader.unread)
        try:
            greeting = reader.next_reply()
        except BackendViolation:
            greeting = (400, b"")
        if greeting is None:
            return b"", ""
        code, reply = greeting
        if code < 300:
            self._reader = None
            self._left = _NOBODY
            self.open = False
            assert self.server is not None
            self._listener_context.servers.greeted(self.server)
            return octets, ""
        why = f"greeted with {code}" if reply else "greeted with what is no reply"
        if code < 500:  # 5xx may be meant for this client alone
            self.failed(why)
        if not self._left:
            self.open = False
            assert self.server is not None
            self._session.note_given_up(self.server.name_for(self._peer), why)
            return octets, ""  # the pipeline passes it on
        self.refusal = reply
        return b"", why

    def failed(self, why: str) -> None:
        """Note that the server has not greeted, so that it is to be left alone.

        If it knows the client, it may have greeted others: then it is looked at first.
        """
        server = self.server
        assert server is not None
        if server.is_told_of(self._peer):
            self._listener_context.servers.doubt(server)
        else:
            self._listener_context.servers.failed(server, why)

    def cancel(self) -> None:
        """Connect to nobody any more, and hear nothing of the server that was tried last."""
        if self._connection is not None:
            self._connection.leave()
            self._connection = None
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self.server is not None:
            self.server.sessions -= 1
            self.server = None

    def end(self) -> None:
        """Give back what the session has had, if it still has: its part of a server, its place."""
        self.cancel()
        self.waits = False
        connection_slots, self._connection_slots = self._connection_slots, None
        if connection_slots is not None:
            connection_slots.leave(self)
