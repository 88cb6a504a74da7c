"""The choice of a server: one session's way to a server of its backend that greets it.

A server that can't be reached, or that refuses with its greeting, makes way for the next one; never
once the client has been greeted, for then the session is that server's.
"""

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from smtpproxy.core.errors import BackendViolation
from smtpproxy.core.replies import ReplyReader
from smtpproxy.net.backend import BackendConnection

if TYPE_CHECKING:
    from smtpproxy.net.servers import Server
    from smtpproxy.net.session import Session


class Choice:
    """Made for one session, which asks it for the next server and hands it the greeting.

    server: the one that was tried last.
    greeting: the last one that refused, or empty.
    open: another server may still take the session, so that greetings are to be handed over.
    """

    __slots__ = ("_connecting", "_left", "_reader", "_session", "greeting", "open", "server")

    def __init__(self, session: "Session", servers: tuple["Server", ...]) -> None:
        self._session = session
        self._left = list(servers)
        self._connecting: asyncio.Task[None] | None = None
        self._reader: ReplyReader | None = None
        self.server: Server | None = None
        self.greeting = b""
        self.open = len(servers) > 1

    def try_next(self) -> bool:
        """Begin to connect to the next server; False if there is none left."""
        self._reader = None
        if not self._left:
            return False
        server = self.server = self._left.pop(0)
        self.open = self.open and bool(self._left)
        self._connecting = asyncio.get_running_loop().create_task(
            self._connect(server), name=server.name
        )
        return True

    async def _connect(self, server: "Server") -> None:
        session = self._session
        try:
            await server.connect(lambda: BackendConnection(session))
        except OSError as error:
            self._connecting = None
            session.give_up_server(error.strerror or str(error), monotonic())
        else:
            self._connecting = None

    def cancel(self) -> None:
        """Connect to nobody any more."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None

    def receive(self, octets: bytes) -> tuple[bytes, str]:
        """Take octets from a server before it is chosen.

        Return what the pipeline is to get, and why this server is to be given up, if it is.
        """
        reader = self._reader = self._reader or ReplyReader()
        reader.receive(octets)
        octets = reader.unread
        try:
            greeting = reader.next_reply()
        except BackendViolation:
            greeting = (500, b"")
        if greeting is None:
            return b"", ""
        code, reply = greeting
        if code < 300:
            self.open = False
            return octets, ""
        self.greeting = reply
        return b"", f"greeted with {code}"
