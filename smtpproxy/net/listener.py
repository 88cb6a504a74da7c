"""A listener: accepts clients at one address."""

import asyncio
import contextlib
import socket
import sys
from typing import Any

from smtpproxy.config.address import Address
from smtpproxy.net import binding
from smtpproxy.net.client_connection import ClientConnection
from smtpproxy.net.listener_context import ListenerContext
from smtpproxy.net.pre_session import PreSession

_KEEP_PATH: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
"""The loop must not remove the path of a Unix socket, where other processes may accept, too."""


class Listener:
    """Accepts clients at one address, and starts a session for each.

    Args:
        address: The address.
        listener_context: What its sessions share.
        transparent: As for `binding.listen`.
        with_ipv4: As for `binding.listen`.
        fast_open: Whether to accept data in the SYN.
    """

    def __init__(
        self,
        address: Address,
        listener_context: ListenerContext,
        *,
        transparent: bool = False,
        with_ipv4: bool = True,
        fast_open: bool = False,
    ) -> None:
        self.wanted = address
        """The address in the settings."""
        self._transparent = transparent
        self._with_ipv4 = with_ipv4
        self._fast_open = fast_open
        self._listener_context = listener_context
        self._servers: list[asyncio.Server] = []
        self._listening: list[socket.socket] = []
        self._resuming: asyncio.Task[None] | None = None
        self._own: list[socket.socket] = []
        self.addresses: list[str] = []
        """The addresses it listens on, with actual ports; empty before `open`."""

    async def open(self, given: list[socket.socket] | None = None) -> None:
        """Start accepting.

        Args:
            given: Listening sockets, which the caller keeps; None to open new ones.

        Raises:
            OSError: A socket cannot be opened.
        """
        if given is None:
            given = self._own = binding.listen(
                self.wanted, transparent=self._transparent, with_ipv4=self._with_ipv4
            )
        self._listening = given
        for each in given:
            binding.set_fast_open(each, on=self._fast_open)
        await self._accept()
        self.addresses = [binding.name_of(each) for each in given]

    async def _accept(self) -> None:
        servers: list[asyncio.Server] = []
        try:
            for each in self._listening:
                servers.append(await self._accept_from(each))  # noqa: PERF401  those made are closed
        except OSError:
            _close(servers)
            raise
        if self._listening:
            self._servers = servers
        else:  # closed meanwhile
            _close(servers)

    def pause(self, paused: bool) -> None:
        """Pause accepting, so that clients wait, or resume it; repeated calls are allowed."""
        if paused:
            _close(self._servers)
            self._servers = []
        elif self._listening and not self._servers and self._resuming is None:
            loop = asyncio.get_running_loop()
            self._resuming = loop.create_task(self._resume(), name="resume")

    async def _resume(self) -> None:
        with contextlib.suppress(OSError):  # the next call tries again
            await self._accept()
        self._resuming = None

    async def _accept_from(self, listening: socket.socket) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        accepting = listening.dup()  # the loop closes the one that it gets
        if listening.family == socket.AF_UNIX:
            return await loop.create_unix_server(
                self._make_client,
                sock=accepting,
                backlog=binding.BACKLOG,
                **_KEEP_PATH,
            )
        return await loop.create_server(self._make_client, sock=accepting, backlog=binding.BACKLOG)

    def _make_client(self) -> asyncio.Protocol:
        security = self._listener_context.security
        if security is not None and security.keeps_waiting:
            return PreSession(self._listener_context, security)
        return ClientConnection(self._listener_context)

    def close(self) -> None:
        """Stop accepting clients."""
        self._listening = []
        _close(self._servers)
        self._servers = []
        if self._own:
            binding.close(self._own, self.wanted)
            self._own = []


def _close(servers: list[asyncio.Server]) -> None:
    for server in servers:
        server.close()
