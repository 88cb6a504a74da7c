"""Session upgrades: what a session's pipeline asks for besides that octets be sent.

TLS on one of its connections, a tunnel between both, or that its client makes way for another one.
While a handshake or a tunnel lasts the connection is not the session's: it gets no octets from
there and must write none.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from smtpproxy.core import replies
from smtpproxy.core.policy import ClientTls
from smtpproxy.core.starttls import Upgrade
from smtpproxy.net.client_attributes import BadXclient, peer_named_by
from smtpproxy.net.tunnel import Tunnel
from smtpproxy.tls import handshake

if TYPE_CHECKING:
    from smtpproxy.core.observer import SessionObserver
    from smtpproxy.core.pipeline import Pipeline
    from smtpproxy.net.backend.backend_connection import BackendConnection
    from smtpproxy.net.backend.server_selection import ServerSelection
    from smtpproxy.net.listener_security import ListenerSecurity
    from smtpproxy.net.peer import Peer
    from smtpproxy.net.unread import UnreadConnections
    from smtpproxy.net.write_batching import WriteBatcher


class UpgradingSession(Protocol):
    """What an upgrade needs of its session, which alone changes its connections."""

    pipeline: "Pipeline"
    observer: "SessionObserver"
    peer: "Peer"
    client: asyncio.Transport
    backend: asyncio.Transport | None
    server_selection: "ServerSelection"

    def client_secured(self, inside: asyncio.Transport) -> None:
        """Go on with the client inside TLS."""

    def backend_secured(self, inside: asyncio.Transport) -> None:
        """Go on with the backend inside TLS."""

    def finish(self, happen: Callable[[float], None]) -> None:
        """Let something happen in the pipeline that may end it."""


class RestartableConnection(Protocol):
    """A client's connection, on which a session of another client may begin."""

    def begin_anew(self, transport: asyncio.Transport, peer: "Peer", *, secure: bool) -> None:
        """Begin a session of another client; `secure`: inside TLS."""


class SessionUpgrades:
    """Those of one session, where its service has to do with TLS or with who its clients are.

    of_client: one is going on to which the client's connection belongs.
    tunnel: there is one.
    """

    __slots__ = (
        "_connection",
        "_security",
        "_session",
        "_task",
        "_unread",
        "_write_batcher",
        "of_client",
        "tunnel",
    )

    def __init__(
        self,
        session: UpgradingSession,
        security: "ListenerSecurity",
        write_batcher: "WriteBatcher",
        unread: "UnreadConnections",
    ) -> None:
        self._session = session
        self._unread = unread
        self._write_batcher = write_batcher
        self._security = security
        self._task: asyncio.Task[None] | None = None
        self._connection = asyncio.BaseProtocol()  # that hears nothing while one is going on
        self.of_client = False
        self.tunnel: Tunnel | None = None
        session.pipeline.upgrade = self.begin
        session.pipeline.introduce = self.introduce
        if security.introduce is not None:
            session.pipeline.ehlo.introduction = security.introduce(session.peer)
        self.note_tls("client", session.client)

    def cancel(self) -> None:
        """Give up; the session closes its connections, of which it hears no more."""
        if self._task is not None:
            self._task.cancel()
        if self.of_client:
            self._connection.connection_lost(None)

    # --- plaintext is over ----------------------------------------------------------------------

    def begin(self, what: Upgrade) -> None:
        """Begin what the pipeline's `upgrade` is called for."""
        session, security = self._session, self._security
        assert session.backend is not None
        self._write_batcher.flush()
        self.of_client = what is not Upgrade.BACKEND_TLS
        if self.of_client:
            session.pipeline.connect_client(_discard)  # in plaintext nothing may follow
        taken = session.client if self.of_client else session.backend
        self._connection = taken.get_protocol()
        if what is Upgrade.TUNNEL:
            self.tunnel = Tunnel(session.client, session.backend, self._unread, self._tunnel_over)
            return
        context = security.client if self.of_client else security.backend
        assert context is not None
        self._task = handshake.begin(
            taken,
            context,
            self._secured,
            self._not_secured,
            limit_s=security.handshake_s,
            server_name=None if self.of_client else self._server_name,
            as_server=self.of_client,
        )

    @property
    def _side(self) -> str:
        return "client" if self.of_client else "backend"

    @property
    def _server_name(self) -> str:
        server = self._session.server_selection.server
        assert server is not None
        address = server.address_for(self._session.peer)
        return self._security.backend_name or address.certified_name

    def _secured(self, inside: asyncio.Transport) -> asyncio.Protocol:
        session, connection = self._session, self._connection
        self.note_tls(self._side, inside)
        self._task = None
        if self.of_client:
            self.of_client = False
            session.client_secured(inside)
        else:
            cast("BackendConnection", connection).transport = inside
            session.backend_secured(inside)
        return cast("asyncio.Protocol", connection)

    def _not_secured(self, why: str) -> None:
        self._session.observer.noted("tls_failed", side=self._side, reason=why)
        reason = f"{self._side}_tls_failed"
        reply = replies.CLIENT_TLS_FAILED if self.of_client else replies.BACKEND_TLS_FAILED
        self._session.finish(partial(self._session.pipeline.fail, reason, reply))

    def note_tls(self, side: str, transport: asyncio.BaseTransport) -> None:
        """Tell who watches of the TLS that one side has, if any."""
        found = transport.get_extra_info("cipher")
        if found is not None:
            cipher, version, _ = found
            self._session.observer.noted("tls_started", side=side, version=version, cipher=cipher)

    def _tunnel_over(self, reason: str) -> None:
        """Take the end of the tunnel: both have said all, or one is gone."""
        self._session.finish(partial(self._session.pipeline.end, reason))

    # --- another client -------------------------------------------------------------------------

    def introduce(self, line: bytes) -> bytes:
        """Take it from a trusted client that it speaks for another one; return a refusal."""
        try:
            self._session.peer = peer_named_by(self._session.peer, line)
        except BadXclient as bad:
            return bad.reply
        return b""

    def start_introduced_session(self) -> None:
        """Let a session of the client that was introduced take the place of this one.

        With a backend connection of its own, since this one is known to be another client's; the
        greeting is the reply to XCLIENT, as it should be.  Who is named is not trusted for that:
        what it says itself may come through the proxy in front as it is.
        """
        session = self._session
        connection = cast("RestartableConnection", session.client.get_protocol())
        secure = session.pipeline.policy.client_tls is ClientTls.ACTIVE
        connection.begin_anew(session.client, session.peer, secure=secure)


def _discard(octets: bytes) -> None:
    """Take replies that may not go out in plaintext."""
