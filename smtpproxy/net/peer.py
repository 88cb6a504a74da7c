"""The peer: the client's address, and the address it connected to.

They are those of its connection, or those that a trusted proxy in front names.
"""

import asyncio
import socket
import struct
import sys
from dataclasses import dataclass, field
from functools import lru_cache

from smtpproxy.config.address import canonical
from smtpproxy.core.observer import ConnectionEnds, Endpoint
from smtpproxy.net.proxy_tlvs import ProxyTlvs

UNIX = "unix"
"""The name of a Unix socket in place of an address."""
UNKNOWN = "unknown"
"""The name of an address that could not be read, since the connection was reset."""
_TCP_INFO_OCTETS = 152
"""The size of the kernel's `tcp_info` up to its field `tcpi_min_rtt`, which is the last one."""
_NOT_MEASURED = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Peer:
    """A client's address, and the address it connected to."""

    # An idle session keeps one (bench S5), so it has the text for the log and not also a tuple.
    name: str = UNIX
    """The client's address: `192.0.2.1:4711`, `[2001:db8::1]:4711`, or `unix`."""
    target: Endpoint | None = None
    """The address that the client connected to; None on a Unix socket."""
    redirected: bool = False
    """Whether the client connected to another machine and was redirected to the proxy."""
    hostname: bytes = b""
    """The client's host name from a proxy in front, in xtext; empty if not known."""
    login: bytes = field(default=b"", repr=False)
    """The authenticated user that a trusted proxy in front names, in xtext; empty if none."""
    tlvs: ProxyTlvs | None = None
    """What a PROXY header says about the client besides its addresses; None if nothing."""
    by_xclient: bool = False
    """Whether XCLIENT has named it: the TLS of the connection is that of the proxy in front."""

    @classmethod
    def of(cls, transport: asyncio.BaseTransport) -> "Peer | None":
        """Return the peer of a client connection; None if the client has reset it.

        The socket's family decides whether it is a Unix socket: an unreadable address must not
        count as one, since an MTA would see such a client as the proxy itself.
        """
        try:
            name = transport.get_extra_info("peername")
            # The family of a transport's socket costs more than both addresses (bench S1).
            if not isinstance(name, tuple) and _is_unix(transport):
                return cls()
            source = endpoint(name)
            target = endpoint(transport.get_extra_info("sockname"))
        except OSError:  # some systems report no address of a reset connection
            return None
        if source is None or target is None:
            return None
        return cls(name_of(source), _shared(target))

    @classmethod
    def here(cls, opened: socket.socket) -> "Peer":
        """Return the proxy itself as the peer of a connection that it has made."""
        return cls(name_of(endpoint(opened.getsockname())), endpoint(opened.getpeername()))

    @property
    def source(self) -> Endpoint | None:
        """The client's address and port; None on a Unix socket."""
        host, colon, port = self.name.rpartition(":")
        return (host.strip("[]"), int(port)) if colon else None

    @property
    def host(self) -> str:
        """The client's IP address; empty on a Unix socket."""
        source = self.source
        return source[0] if source else ""


def end_of(transport: asyncio.BaseTransport, which: str) -> str:
    """Return an address of a connection as text; `which` is "peername" or "sockname"."""
    try:
        name = transport.get_extra_info(which)
        if not isinstance(name, tuple) and _is_unix(transport):
            return UNIX
        end = endpoint(name)
    except OSError:
        end = None
    return UNKNOWN if end is None else name_of(end)


def _is_unix(transport: asyncio.BaseTransport) -> bool:
    opened = transport.get_extra_info("socket")
    return opened is not None and opened.family == socket.AF_UNIX


def endpoint(name: object) -> Endpoint | None:
    """Return the result of `getpeername` or `getsockname` as an endpoint; None if not IP."""
    return end_at(name[0], name[1]) if isinstance(name, tuple) else None


def end_at(host: str, port: int) -> Endpoint:
    """Return an endpoint with a canonical address, wherever the address comes from.

    On a socket for both families, such as systemd's, an IPv4 address is `::ffff:192.0.2.1`.
    """
    return canonical(host), port


def name_of(end: Endpoint | None) -> str:
    """Return an endpoint as text: `192.0.2.1:4711`, `[2001:db8::1]:4711`, or `unix` for None."""
    if end is None:
        return UNIX
    host, port = end
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_shared = lru_cache(maxsize=256)(lambda each: each)
"""Returns one object for all equal endpoints, to save memory."""


class TransportEnds:
    """Reads the addresses of a session's two connections.

    Args:
        client_name: The client's address as in `Peer.name`.
        client: The client connection.
        backend: The backend connection.
    """

    __slots__ = ("_backend", "_client", "_client_name")

    def __init__(
        self, client_name: str, client: asyncio.Transport, backend: asyncio.Transport
    ) -> None:
        self._client_name = client_name
        self._client = client
        self._backend = backend

    def source(self) -> Endpoint | None:
        """Return the address and port that the server sees; None on a Unix socket, or if closed."""
        try:
            name = self._backend.get_extra_info("sockname")
        except OSError:
            return None
        if not isinstance(name, tuple):
            return None
        # An idle session keeps it (bench S5); the address is mostly the same.
        return sys.intern(name[0].partition("%")[0]), name[1]

    def all(self) -> ConnectionEnds:
        """Return all of them as text."""
        return ConnectionEnds(
            client=self._client_name,
            listener=end_of(self._client, "sockname"),
            proxy=end_of(self._backend, "sockname"),
            server=end_of(self._backend, "peername"),
            client_rtt_s=_round_trip_of(self._client),
        )


def _round_trip_of(transport: asyncio.BaseTransport) -> float | None:
    """Return the shortest round-trip time of a TCP connection, as the kernel has measured it.

    The handshake of TCP is one measurement.  The shortest has no delayed acknowledgement in it.
    """
    if sys.platform != "linux":
        return None
    try:
        opened = transport.get_extra_info("socket")
        if opened is None or opened.family == socket.AF_UNIX:
            return None
        octets = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_OCTETS)
    except OSError:
        return None
    if len(octets) < _TCP_INFO_OCTETS:
        return None
    (microseconds,) = struct.unpack_from("=I", octets, _TCP_INFO_OCTETS - 4)
    return None if microseconds == _NOT_MEASURED else microseconds / 1e6
