"""The upgrade: what a session does when its pipeline says that plaintext is over.

A handshake on one of its connections, or a tunnel between both.  While it lasts the connection is
not the session's: it gets no octets from there and must write none.
"""

import asyncio
from typing import TYPE_CHECKING, cast

from smtpproxy.core.pipeline import SECURE_BACKEND, SECURE_CLIENT
from smtpproxy.net import handshake
from smtpproxy.net.tunnel import Tunnel

if TYPE_CHECKING:
    from smtpproxy.net.backend import BackendConnection
    from smtpproxy.net.security import Security
    from smtpproxy.net.session import Session


class Upgrade:
    """One handshake, or the tunnel, of a session.

    of_client: the client's connection is part of it.
    tunnel: there is one.
    """

    def __init__(
        self,
        session: "Session",
        security: "Security",
        what: int,
        client: asyncio.Transport,
        backend: asyncio.Transport,
        server: str,
    ) -> None:
        self._session = session
        self._task: asyncio.Task[None] | None = None
        self.of_client = what != SECURE_BACKEND
        self.tunnel: Tunnel | None = None
        self._connection = cast(
            "asyncio.Protocol", (client if self.of_client else backend).get_protocol()
        )
        if what == SECURE_CLIENT:
            assert security.client is not None
            self._side = "client"
            self._task = handshake.begin(
                client,
                security.client,
                self._secured,
                self._not_secured,
                limit_s=security.handshake_s,
            )
        elif what == SECURE_BACKEND:
            assert security.backend is not None
            self._side = "backend"
            self._task = handshake.begin(
                backend,
                security.backend,
                self._secured,
                self._not_secured,
                limit_s=security.handshake_s,
                server_name=security.backend_name or server,
                as_server=False,
            )
        else:
            self.tunnel = Tunnel(client, backend, session.tunnel_over)

    def cancel(self) -> None:
        """Give up; the caller closes the connection, of which the session hears no more."""
        if self._task is not None:
            self._task.cancel()
        if self.of_client:
            self._connection.connection_lost(None)

    def _secured(self, inside: asyncio.Transport) -> asyncio.Protocol:
        note_tls(self._session, self._side, inside)
        if self.of_client:
            self._session.client_secured(inside)
        else:
            cast("BackendConnection", self._connection).transport = inside
            self._session.backend_secured(inside)
        return self._connection

    def _not_secured(self, why: str) -> None:
        self._session.note("tls_failed", side=self._side, why=why)
        self._session.not_secured(f"{self._side}_tls_failed")


def note_tls(session: "Session", side: str, transport: asyncio.BaseTransport) -> None:
    """Tell who watches a session of the TLS that one side of it has, if any."""
    found = transport.get_extra_info("cipher")
    if found is not None:
        cipher, version, _ = found
        session.note("tls_started", side=side, version=version, cipher=cipher)
