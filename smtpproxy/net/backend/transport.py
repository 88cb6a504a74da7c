"""How the servers of a backend are reached, where a plain connection will not do.

By way of a source address that is the client's own, with a PROXY header ahead of all else, or
inside TLS from the start.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from smtpproxy.config.address import Address
from smtpproxy.net.backend import resolver
from smtpproxy.net.peer import Peer
from smtpproxy.net.proxy_protocol import UNKNOWN_PEER
from smtpproxy.net.tproxy import bind_as, original_target


@dataclass(frozen=True, slots=True)
class BackendTransport:
    """Made once for each backend.

    header: makes the PROXY header, of the client and the connection.
    transparent: the connection leaves from the client's address.
    context: of TLS from the start; the certificate is to be for `server_name`, else for the host.
    """

    header: Callable[[Peer, Peer], bytes] | None = None
    transparent: bool = False
    context: ssl.SSLContext | None = None
    server_name: str = ""
    handshake_s: float = 30.0

    async def connect(
        self, address: Address, factory: Callable[[], asyncio.Protocol], peer: Peer | None
    ) -> None:
        """Open a connection for a client, or with None for the proxy itself.

        Raises OSError if the server can't be reached in this way.
        """
        loop = asyncio.get_running_loop()
        if address.is_original:
            address = original_target(peer or UNKNOWN_PEER)
        opened = await self._open(address, peer)
        try:
            if self.header is not None:
                header = self.header(peer or UNKNOWN_PEER, Peer.here(opened))
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
        """Connect a socket to the first of the server's addresses that can be reached."""
        if address.is_unix:
            return await _connect(socket.AF_UNIX, address.path, None)
        family = socket.AF_UNSPEC
        source = peer if self.transparent else None
        if source is not None:
            if source.source is None or ip_address(source.host.partition("%")[0]).is_unspecified:
                # From 0.0.0.0, which a proxy in front may name, it would leave as the proxy's own.
                raise OSError("the client has no address to connect from")
            family = socket.AF_INET6 if ":" in source.host else socket.AF_INET
        why: OSError = OSError("no address")
        for each_family, name in await resolver.look_up(address.host, address.port, family):
            try:
                return await _connect(each_family, name, source)
            except OSError as error:
                why = error
        raise why


async def _connect(
    family: int, name: str | tuple[object, ...], source: Peer | None
) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setblocking(False)
        if source is not None:
            bind_as(opened, source)
        await asyncio.get_running_loop().sock_connect(opened, name)
    except BaseException:
        opened.close()
        raise
    return opened
