"""Session upgrades: TLS on a session's connections, a tunnel between them, and XCLIENT.

The pipeline requests them.  During a handshake or a tunnel the connection does not belong to the
session, which gets no octets from it and must not write to it.
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
    from smtpproxy.core.observer import IdentifiedObserver
    from smtpproxy.core.pipeline import Pipeline
    from smtpproxy.net.backend.backend_connection import BackendConnection
    from smtpproxy.net.backend.server_selection import ServerSelection
    from smtpproxy.net.listener_security import ListenerSecurity
    from smtpproxy.net.peer import Peer
    from smtpproxy.net.unread import UnreadConnections
    from smtpproxy.net.write_batching import WriteBatcher


class UpgradingSession(Protocol):
    """The part of a session that an upgrade uses."""

    pipeline: "Pipeline"
    observer: "IdentifiedObserver"
    peer: "Peer"
    client: asyncio.Transport
    backend: asyncio.Transport | None
    server_selection: "ServerSelection"

    def client_secured(self, inside: asyncio.Transport) -> None:
        """Use the client connection inside TLS."""

    def backend_secured(self, inside: asyncio.Transport) -> None:
        """Use the backend connection inside TLS."""

    def reconnect(self) -> None:
        """Connect to the server again, since TLS has failed on the last connection."""

    def finish(self, callback: Callable[[float], None]) -> None:
        """Call a function of the pipeline that may end it; it gets the time."""


class RestartableConnection(Protocol):
    """A client connection on which a session of another client can start."""

    def restart(self, transport: asyncio.Transport, peer: "Peer", *, secure: bool) -> None:
        """Start a session of another client; `secure` is whether it is inside TLS."""


class SessionUpgrades:
    """The upgrades of one session; only made if its listener has TLS or trust rules.

    Args:
        session: The session.
        security: The TLS and trust rules of its listener.
        write_batcher: The write batcher of the worker.
        unread: The unread connections of the worker.
    """

    __slots__ = (
        "_connection",
        "_named",
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
        self._connection = asyncio.BaseProtocol()  # the protocol that an upgrade has replaced
        self.of_client = False
        """Whether an upgrade that uses the client connection is in progress."""
        self.tunnel: Tunnel | None = None
        """The tunnel; None if there is none."""
        self._named: Peer | None = None  # by XCLIENT
        introduction = None if security.introduce is None else security.introduce(session.peer)
        session.pipeline.allow_upgrades(self.begin, self.introduce, introduction)
        if session.peer.tlvs is not None and (shown := session.peer.tlvs.shown()):
            session.observer.noted("proxy_header_read", **shown)
        self.note_tls("client", session.client)

    def cancel(self) -> None:
        """Cancel the handshake; the session then closes its connections."""
        if self._task is not None:
            self._task.cancel()
            self._task = None  # its exception knows the frames that know this object
        if self.of_client:
            self._connection.connection_lost(None)

    # --- TLS and tunnel -------------------------------------------------------------------------

    def begin(self, what: Upgrade) -> None:
        """Start an upgrade; this is the pipeline's `upgrade` callback."""
        session, security = self._session, self._security
        assert session.backend is not None
        self._write_batcher.flush()
        self.of_client = what is not Upgrade.BACKEND_TLS
        if self.of_client:
            session.pipeline.connect_client(_discard)  # no plaintext may follow
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
        side = self._side
        session.finish(lambda _: self.note_tls(side, inside))
        self._task = None
        if self.of_client:
            self.of_client = False
            session.client_secured(inside)
        else:
            cast("BackendConnection", connection).secured(inside)
            session.backend_secured(inside)
        return cast("asyncio.Protocol", connection)

    def _not_secured(self, why: str) -> None:
        self._session.finish(partial(self._give_up_handshake, why))

    def _give_up_handshake(self, why: str, now: float) -> None:
        self._task = None
        in_plaintext = not self.of_client and self._session.pipeline.restart_in_plaintext()
        if in_plaintext:
            why += "; the session goes on in plaintext"
        self._session.observer.noted("tls_failed", side=self._side, reason=why)
        if in_plaintext:
            self._session.reconnect()
            return
        reason = f"{self._side}_tls_failed"
        reply = replies.CLIENT_TLS_FAILED if self.of_client else replies.BACKEND_TLS_FAILED
        self._session.pipeline.fail(reason, reply, now)

    def note_tls(self, side: str, transport: asyncio.BaseTransport) -> None:
        """Report the TLS version and cipher of one side to the observer, if it has TLS.

        Args:
            side: "client" or "backend".
            transport: The transport of that side.
        """
        inside = transport.get_extra_info("ssl_object")
        if inside is not None:
            # The cipher's own version is that of the oldest TLS that has it.
            version, cipher = inside.version(), inside.cipher()[0]
            self._session.observer.noted("tls_started", side=side, version=version, cipher=cipher)

    def _tunnel_over(self, reason: str) -> None:
        """End the session after the end of its tunnel."""
        self._session.finish(partial(self._session.pipeline.end, reason))

    # --- another client -------------------------------------------------------------------------

    def introduce(self, line: bytes) -> bytes:
        """Process XCLIENT of a trusted client; return a refusal, or empty."""
        try:
            login = self._session.pipeline.policy.xclient_login
            self._named = peer_named_by(self._session.peer, line, login=login)
        except BadXclient as bad:
            return bad.reply
        return b""

    def start_introduced_session(self) -> None:
        """Start a session of the client that XCLIENT named, in place of this one.

        It gets its own backend connection, since the backend knows this one as another client's,
        and its greeting is the reply to XCLIENT.  The named client is not trusted, since the proxy
        in front may forward its commands unchanged.
        """
        session = self._session
        assert self._named is not None
        connection = cast("RestartableConnection", session.client.get_protocol())
        secure = session.pipeline.policy.client_tls is ClientTls.ACTIVE
        connection.restart(session.client, self._named, secure=secure)


def _discard(octets: bytes) -> None:
    """Discard replies that may not be sent in plaintext."""
