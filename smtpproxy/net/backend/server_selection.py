"""Server selection: finds a server that sends a greeting for one session.

First it gets a connection slot, if the backend has a limit.  Then it tries the servers in order: if
one cannot be reached, or refuses in its greeting, it tries the next.  After a positive greeting the
session stays with that server, also if it has to connect again.
"""

import asyncio
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
    from smtpproxy.net.proxy_tlvs import ProxyTlvs

_NO_SERVERS: list["Server"] = []


class SelectingSession(BackendEvents, Protocol):
    """The part of a session that server selection uses."""

    client: asyncio.Transport

    @property
    def backend_events(self) -> BackendEvents:
        """The receiver of the events of the backend connection."""

    def header_tlvs(self) -> "ProxyTlvs":
        """Return what a PROXY header says about the client besides its addresses."""

    def refuse_loop(self) -> None:
        """Refuse the client, which is one of the service's own connections to a server."""

    def connection_slot_answered(self, *, granted: bool) -> None:
        """Process the answer to the request for a connection slot."""

    def reclaim_slot(self) -> None:
        """Release the connection slot as soon as no transaction is open."""

    def break_down(self, error: Exception) -> None:
        """End the session after an internal error."""

    def give_up_server(self, why: str) -> None:
        """Try the next server, since this one could not be reached."""

    def note_given_up(self, server: str, why: str) -> None:
        """Report that the last server refused the client."""


class ServerSelection:
    """The server selection of one session; it is the session's `SlotHolder`.

    Args:
        session: The session.
        listener_context: What the sessions of its listener share.
        peer: The client.
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
        self._session: SelectingSession | None = session
        self._listener_context = listener_context
        self._connection_slots = listener_context.connection_slots
        self._peer = peer
        self._left: list[Server] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._connection: BackendConnection | None = None
        self._reader: ReplyReader | None = None
        self.server: Server | None = None
        """The server that is used or was tried last."""
        self.refusal = b""
        """The refusing greeting of the last server; else empty."""
        self.open = True
        """Whether no greeting has been accepted, so that octets must be passed to `receive`."""
        self.waits = False
        """Whether the session waits for a connection slot."""

    @property
    def _open_session(self) -> SelectingSession:
        assert self._session is not None, "used after `end`"
        return self._session

    def begin(self) -> None:
        """Request a connection slot if needed; the session then gets the answer."""
        if self._connection_slots is None:
            self._open_session.connection_slot_answered(granted=True)
            return
        self.waits = True
        admission, host = self._listener_context.admission, self._peer.host
        address = host.encode() if admission is None else admission.address_of(host)
        self._connection_slots.ask(self, address)

    def reclaim_slot(self) -> None:
        """Make the session release its slot."""
        self._open_session.reclaim_slot()

    def slot_answered(self, *, granted: bool) -> None:
        """Pass the answer to the session."""
        self.waits = False
        self._open_session.connection_slot_answered(granted=granted)

    @property
    def has_more(self) -> bool:
        """Whether there is another server to try."""
        return self._left is None or bool(self._left)

    def try_next(self) -> bool:
        """Start to connect to the next server; return False if there is none left."""
        self._reader = None
        if self._left is None:
            self._left = self._listener_context.servers.in_order()
        if not self._left:
            return False
        self.server = self._left.pop(0)
        self._listener_context.servers.attach(self.server)
        self._begin(self.server)
        return True

    def reconnect(self) -> None:
        """Connect to the server again that has been greeted, and has closed its connection."""
        assert self.server is not None
        if self._connection is not None:
            self._connection.leave()
        self._begin(self.server)

    def _begin(self, server: "Server") -> None:
        connection = self._connection = BackendConnection(self._open_session.backend_events)
        self._connecting = asyncio.get_running_loop().create_task(
            self._connect(server, connection), name=server.name
        )

    async def _connect(self, server: "Server", connection: BackendConnection) -> None:
        session = self._open_session
        if own_connections.is_one(session.client):  # recorded by now: this task runs later
            self._connecting = None
            session.refuse_loop()
            return
        try:
            await server.connect(lambda: connection, self._peer, session.header_tlvs)
        except OSError as error:
            self._connecting = None
            why = error_text(error)
            if isinstance(error, NotForThisClient):
                self._listener_context.servers.request_check(server)
            elif error.errno not in OUR_OWN:
                self._listener_context.servers.failed(server, why)
            session.give_up_server(why)
        except Exception as error:  # noqa: BLE001  nothing awaits this task
            self._connecting = None
            session.break_down(error)
        else:
            self._connecting = None

    def receive(self, octets: bytes) -> tuple[bytes, str]:
        """Process octets of a server until its greeting is complete.

        Returns:
            The octets for the pipeline, and why to try the next server; either may be empty.
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
            self._left = _NO_SERVERS
            self.open = False
            assert self.server is not None
            self._listener_context.servers.greeted(self.server)
            return octets, ""
        why = f"greeted with {code}" if reply else "greeted with an invalid reply"
        if code < 500:  # a 5xx may concern this client only
            self.failed(why)
        if not self._left:
            self.open = False
            assert self.server is not None
            self._open_session.note_given_up(self.server.name_for(self._peer), why)
            return octets, ""  # the pipeline forwards it
        self.refusal = reply
        return b"", why

    def offers(self, offer: bytes) -> list[bytes]:
        """Compare the offer of the session's server; see `NegotiatedExtensions.offers`."""
        assert self.server is not None
        return self._listener_context.servers.offers(self.server, offer)

    def failed(self, why: str) -> None:
        """Mark the server as down, since it has sent no valid greeting.

        If the server has the client's address, the failure may concern this client only, so the
        server is checked first.
        """
        server = self.server
        assert server is not None
        if server.gets_address_of(self._peer):
            self._listener_context.servers.request_check(server)
        else:
            self._listener_context.servers.failed(server, why)

    def cancel(self) -> None:
        """Cancel connecting, and detach from the server that was tried last."""
        if self._connection is not None:
            self._connection.leave()
            self._connection = None
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self.server is not None:
            self._listener_context.servers.detach(self.server)
            self.server = None

    def end(self) -> None:
        """Release the server and the connection slot; may be called repeatedly."""
        self.cancel()
        self._session = None  # which knows this object
        self.waits = False
        connection_slots, self._connection_slots = self._connection_slots, None
        if connection_slots is not None:
            connection_slots.leave(self)
