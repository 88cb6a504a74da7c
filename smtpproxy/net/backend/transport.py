"""How the servers of a backend are reached, where a plain connection will not do.

By a name that may have several addresses, by a Unix socket, from a source address that is the
client's own, with a PROXY header ahead of all else, or inside TLS from the start.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from aiohappyeyeballs import AddrInfoType, start_connection

from smtpproxy.config.address import Address
from smtpproxy.net.backend import resolver
from smtpproxy.net.own_connections import Outgoing
from smtpproxy.net.peer import Peer
from smtpproxy.net.tproxy import bind_as, original_target
from smtpproxy.tls.error_text import OUR_OWN, NotForThisClient, error_text

NEXT_S = 0.25
"""How long one address of a name is tried alone (RFC 8305 section 8)."""


@dataclass(frozen=True, slots=True)
class BackendTransport:
    """Made once for each backend.

    header: makes the PROXY header, for the client or the proxy itself.
    transparent: the connection leaves from the client's address.
    context: of TLS from the start; the certificate is to be for `server_name`, else for the host.
    """

    header: Callable[[Peer], bytes] | None = None
    transparent: bool = False
    context: ssl.SSLContext | None = None
    server_name: str = ""
    handshake_s: float = 30.0

    async def connect(
        self, address: Address, factory: Callable[[], asyncio.Protocol], peer: Peer | None
    ) -> None:
        """Open a connection for a client, or with None for the proxy itself.

        Raises OSError if the server can't be reached in this way; NotForThisClient, if it had been
        told of the client by then, or could not be told.
        """
        if self.header is not None and peer is not None and peer.source is None:
            raise NotForThisClient(0, "the client has no address for a PROXY header")
        told = peer is not None and (address.is_original or self.transparent)
        try:
            if address.is_original:
                address = original_target(peer)
            opened = await self._open(address, peer)
            told = told or self.tells(peer)
            await self._begin(opened, address, factory, peer)
        except OSError as error:
            # The resolver has not been told of anybody.
            if not told or error.errno in OUR_OWN or isinstance(error, socket.gaierror):
                raise
            raise NotForThisClient(error.errno or 0, error_text(error)) from error

    def tells(self, peer: Peer | None) -> bool:
        """Tell whether the server knows who the client is before it greets."""
        return peer is not None and (self.transparent or self.header is not None)

    async def _begin(
        self,
        opened: socket.socket,
        address: Address,
        factory: Callable[[], asyncio.Protocol],
        peer: Peer | None,
    ) -> None:
        """Say on a new connection what comes before the greeting."""
        loop = asyncio.get_running_loop()
        try:
            if self.header is not None:
                header = self.header(peer or Peer.here(opened))
                await loop.sock_sendall(opened, header)
            open_protocol = (
                loop.create_unix_connection if address.is_unix else loop.create_connection
            )
            await open_protocol(
                factory,
                sock=opened,
                ssl=self.context,
                server_hostname=self.server_name_for(address) if self.context else None,
                ssl_handshake_timeout=self.handshake_s if self.context else None,
            )
        except BaseException as error:
            opened.close()
            if isinstance(error, ConnectionError) and self.context and not str(error):
                raise ConnectionAbortedError("closed in the TLS handshake") from error
            raise

    def server_name_for(self, address: Address) -> str:
        """Return the name that the server's certificate is to have."""
        return self.server_name or address.certified_name

    async def _open(self, address: Address, peer: Peer | None) -> socket.socket:
        """Connect a socket to whichever of the server's addresses answers first."""
        if address.is_unix:
            return _connect_unix(address.path)
        found = await resolver.look_up(address.host, address.port)
        if not self.transparent or peer is None:
            return await _connect(found)
        if peer.source is None or ip_address(peer.host.partition("%")[0]).is_unspecified:
            # From 0.0.0.0, which a proxy in front may name, it would leave as the proxy's own.
            raise OSError("the client has no address to connect from")
        family = socket.AF_INET6 if ":" in peer.host else socket.AF_INET
        found = [each for each in found if each[0] == family]
        if not found:
            raise OSError("the server has no address of the client's family")
        return await _connect(found, peer)


async def _connect(found: resolver.Found, source: Peer | None = None) -> socket.socket:
    """Connect a socket to the address that answers first, from the source's address if given.

    The next one is tried when one has failed or has been silent for a while (RFC 8305 section 5):
    one that swallows all that is sent to it keeps nobody waiting.
    """

    def make(info: AddrInfoType) -> socket.socket:
        opened = Outgoing(*info[:3])
        if source is not None:
            try:
                bind_as(opened, source)
            except OSError:
                opened.close()
                raise
        return opened

    try:
        return await start_connection(found, happy_eyeballs_delay=NEXT_S, socket_factory=make)
    except OSError as error:
        if error.errno:
            raise OSError(error.errno, os.strerror(error.errno)) from error
        raise  # each failed in its own way, and all of them are told


def _connect_unix(path: str) -> socket.socket:
    """Connect to a Unix socket, which takes no time: it succeeds, or fails, at once."""
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    opened.setblocking(False)
    try:
        opened.connect(path)
    except OSError:
        opened.close()
        raise
    return opened
