"""The peer: who the client is, as far as anybody in front of the proxy has told.

For a client that connects itself these are the addresses of its connection; for one that comes by
way of another proxy, those that this proxy names.
"""

import asyncio
import socket
from dataclasses import dataclass
from functools import lru_cache

from smtpproxy.config.address import canonical
from smtpproxy.core.observer import ConnectionEnds, Endpoint

UNIX = "unix"
"""The name of an end that is a Unix socket."""
UNKNOWN = "unknown"
"""The name of an end that could not be read: the connection was reset before."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A client's own endpoint, and the one that it wanted to reach, None on a Unix socket.

    name: its own one as `192.0.2.1:4711`, `[2001:db8::1]:4711`, or `unix`.
    redirected: it wanted another machine, and did not know of the proxy.
    hostname: as the proxy in front has found it, in xtext; empty if it has not.
    """

    # An idle session keeps one (bench S5): the text that the log wants, and no tuple beside it.
    name: str = UNIX
    target: Endpoint | None = None
    redirected: bool = False
    hostname: bytes = b""

    @classmethod
    def of(cls, transport: asyncio.BaseTransport) -> "Peer | None":
        """Return the two ends of a client's connection.

        None if they can't be read: the client has reset the connection.  What the socket is follows
        from its family; who is not known is never taken for a client of a Unix socket, which an MTA
        would take for the proxy itself.
        """
        try:
            if _is_unix(transport):
                return cls()
            source = endpoint(transport.get_extra_info("peername"))
            target = endpoint(transport.get_extra_info("sockname"))
        except OSError:  # some systems report neither end of a reset connection
            return None
        if source is None or target is None:
            return None
        return cls(name_of(source), _shared(target))

    @classmethod
    def here(cls, opened: socket.socket) -> "Peer":
        """Return the two ends of a connection that the proxy itself has made."""
        return cls(name_of(endpoint(opened.getsockname())), endpoint(opened.getpeername()))

    @property
    def source(self) -> Endpoint | None:
        """The client's own endpoint; None on a Unix socket."""
        host, colon, port = self.name.rpartition(":")
        return (host.strip("[]"), int(port)) if colon else None

    @property
    def host(self) -> str:
        """The client's IP address; empty on a Unix socket."""
        source = self.source
        return source[0] if source else ""


def end_of(transport: asyncio.BaseTransport, which: str) -> str:
    """Return the name of an end of a connection; `which` is "peername" or "sockname"."""
    try:
        if _is_unix(transport):
            return UNIX
        end = endpoint(transport.get_extra_info(which))
    except OSError:
        end = None
    return UNKNOWN if end is None else name_of(end)


def _is_unix(transport: asyncio.BaseTransport) -> bool:
    opened = transport.get_extra_info("socket")
    return opened is not None and opened.family == socket.AF_UNIX


def endpoint(name: object) -> Endpoint | None:
    """Return an end of a connection, by `getpeername` or `getsockname`; None if not IP."""
    return end_at(name[0], name[1]) if isinstance(name, tuple) else None


def end_at(host: str, port: int) -> Endpoint:
    """Return an end of a connection: here addresses come in, whoever names them.

    They become canonical: at a socket for both families, such as systemd's, IPv4 shows as
    `::ffff:192.0.2.1`, and a proxy in front with such a socket names it so.
    """
    return canonical(host), port


def name_of(end: Endpoint | None) -> str:
    """Return an end of a connection as `192.0.2.1:4711`, `[2001:db8::1]:4711`, or `unix`."""
    if end is None:
        return UNIX
    host, port = end
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_shared = lru_cache(maxsize=256)(lambda each: each)
"""Returns the one object that stands for all equal ones: few addresses are met again and again."""


def source_of(backend: asyncio.Transport) -> Endpoint | None:
    """Return the end that the server sees of a connection to it; None on a Unix socket."""
    try:
        name = backend.get_extra_info("sockname")
    except OSError:  # it is closed already
        return None
    return (name[0].partition("%")[0], name[1]) if isinstance(name, tuple) else None


def ends_of(
    client_name: str, client: asyncio.Transport, backend: asyncio.Transport
) -> ConnectionEnds:
    """Look up both ends of both connections; `client_name` is who the client is known as."""
    return ConnectionEnds(
        client=client_name,
        listener=end_of(client, "sockname"),
        proxy=end_of(backend, "sockname"),
        server=end_of(backend, "peername"),
    )
