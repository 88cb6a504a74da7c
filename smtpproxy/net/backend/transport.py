"""The backend transport: connects to servers if a plain connection to an IP address is not enough.

It handles host names with several addresses, Unix sockets, the client's address as source address,
a PROXY header, and implicit TLS.
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
from smtpproxy.net.proxy_tlvs import ProxyTlvs
from smtpproxy.net.tproxy import bind_as, bind_from, original_target
from smtpproxy.tls.error_text import OUR_OWN, NotForThisClient, error_text

NEXT_S = 0.25
"""The delay before the next address of a name is tried, too (RFC 8305 section 8)."""


@dataclass(frozen=True, slots=True)
class BackendTransport:
    """How to connect to the servers of a backend."""

    header: Callable[[Peer, ProxyTlvs | None], bytes] | None = None
    """Makes the PROXY header for the client or the proxy itself; None for none."""
    transparent: bool = False
    """Whether to connect from the client's address."""
    context: ssl.SSLContext | None = None
    """The TLS context for implicit TLS; None for no TLS."""
    server_name: str = ""
    """The name that the certificate must be for; empty for the server's host."""
    source: str = ""
    """The IP address to connect from; empty for any."""
    handshake_s: float = 30.0
    """The time limit of the TLS handshake."""

    async def connect(
        self,
        address: Address,
        factory: Callable[[], asyncio.Protocol],
        peer: Peer | None,
        tlvs: Callable[[], ProxyTlvs] | None = None,
    ) -> None:
        """Open a connection.

        Args:
            address: The address of the server in the settings.
            factory: Makes the protocol of the connection.
            peer: The client; None for the proxy itself.
            tlvs: Returns what a PROXY header says about the client besides its addresses.

        Raises:
            OSError: The server cannot be reached.
            NotForThisClient: The attempt failed after the server got the client's address, or the
                client has no address to pass on.
        """
        if self.header is not None and peer is not None and peer.source is None:
            raise NotForThisClient(0, "the client has no address for a PROXY header")
        knows_client = peer is not None and (address.is_original or self.transparent)
        try:
            if address.is_original:
                address = original_target(peer)
            opened = await self._open(address, peer)
            knows_client = knows_client or self.passes_address_of(peer)
            await self._begin(opened, address, factory, peer, tlvs)
        except OSError as error:
            # A failed look-up does not depend on the client.
            if not knows_client or error.errno in OUR_OWN or isinstance(error, socket.gaierror):
                raise
            raise NotForThisClient(error.errno or 0, error_text(error)) from error

    def passes_address_of(self, peer: Peer | None) -> bool:
        """Return whether the server gets the client's address before its greeting."""
        return peer is not None and (self.transparent or self.header is not None)

    async def _begin(
        self,
        opened: socket.socket,
        address: Address,
        factory: Callable[[], asyncio.Protocol],
        peer: Peer | None,
        tlvs: Callable[[], ProxyTlvs] | None,
    ) -> None:
        """Send the PROXY header, make the TLS handshake, and set the protocol."""
        loop = asyncio.get_running_loop()
        try:
            if self.header is not None:
                header = self.header(peer or Peer.here(opened), tlvs() if tlvs else None)
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
        """Return the name that the server's certificate must be for."""
        return self.server_name or address.certified_name

    async def _open(self, address: Address, peer: Peer | None) -> socket.socket:
        """Return a socket that is connected to the first address that answers."""
        if address.is_unix:
            return _connect_unix(address.path)
        found = await resolver.look_up(address.host, address.port)
        if not self.transparent or peer is None:
            if not self.source:
                return await _connect(found)
            found = _of_family(found, self.source, "source")
            return await _connect(found, lambda opened: bind_from(opened, self.source))
        if peer.source is None or ip_address(peer.host.partition("%")[0]).is_unspecified:
            # With 0.0.0.0, which a proxy in front may name, the source would be the proxy.
            raise OSError("the client has no address to connect from")
        found = _of_family(found, peer.host, "client")
        return await _connect(found, lambda opened: bind_as(opened, peer))


def _of_family(found: resolver.Found, host: str, whose: str) -> resolver.Found:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    left = [each for each in found if each[0] == family]
    if not left:
        raise OSError(f"the server has no address of the {whose}'s family")
    return left


async def _connect(
    found: resolver.Found, bind: Callable[[socket.socket], None] | None = None
) -> socket.socket:
    """Return a socket that is connected to the first address that answers.

    The next address is tried after a failure or a short delay (RFC 8305 section 5), so that an
    address that does not answer costs little time.

    Args:
        found: The addresses.
        bind: Binds a socket to the address to connect from; None for any.
    """

    def make(info: AddrInfoType) -> socket.socket:
        opened = Outgoing(*info[:3])
        if bind is not None:
            try:
                bind(opened)
            except OSError:
                opened.close()
                raise
        return opened

    try:
        return await start_connection(found, happy_eyeballs_delay=NEXT_S, socket_factory=make)
    except OSError as error:
        if error.errno:
            raise OSError(error.errno, os.strerror(error.errno)) from error
        raise  # different errors, which the text lists


def _connect_unix(path: str) -> socket.socket:
    """Connect to a Unix socket, which never has to wait."""
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    opened.setblocking(False)
    try:
        opened.connect(path)
    except OSError:
        opened.close()
        raise
    return opened
