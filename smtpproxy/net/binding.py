"""Binding: opens and closes listening sockets.

Each socket has one address family.  So an IPv4 client of `[::]:25` has an IPv4 address, and a
reload can give the IPv4 socket of such a listener to another listener.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from time import sleep

from smtpproxy.config.address import Address
from smtpproxy.net.tproxy import set_transparent

BACKLOG = 4096
"""The most connections that wait to be accepted at a listening socket."""
KEEPALIVE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 60, 30, 6
"""TCP keepalive: the idle time before the first probe, the interval, and the number of probes.

NATs and firewalls drop idle connections after minutes, some after four; an MTA may take ten minutes
to reply (RFC 5321 section 4.5.3.2.6).
"""
FAST_OPEN_QUEUE = 256
"""How many connections with data in their SYN may wait for the end of the TCP handshake."""
_LOCK_TRIES, _LOCK_INTERVAL_S = 50, 0.01
_FREE_PORTS_TRIED = 10
"""How many free ports to try for port 0, since a port may be free in one family only."""


MODE = 0o600
"""The default mode of a Unix socket: only its owner may connect."""


class UnixSocket(socket.socket):
    """A listening Unix socket, which has created a file."""

    made: tuple[int, int] | None = None
    """The device and inode of its file; another file may be at its path since."""


def listen(
    address: Address,
    *,
    transparent: bool = False,
    with_ipv4: bool = True,
    mode: int = MODE,
    overlapping: Collection[socket.socket] = (),
) -> list[socket.socket]:
    """Open the listening sockets of an address; `localhost` and `[::]` may have one per family.

    Args:
        address: The address.
        transparent: Whether to accept connections to addresses of other machines, too.
        with_ipv4: Whether `[::]` includes IPv4; see `ports_on_ipv4`.
        mode: The mode of a Unix socket, regardless of the umask.
        overlapping: Listening sockets of this service whose addresses may overlap.

    Raises:
        OSError: A socket cannot be opened; the others are closed then.
    """
    if address.is_unix:
        return [_listen_unix(address.path, mode)]
    ipv4 = address.all_of_ipv4 if with_ipv4 else None
    addresses = [address] if ipv4 is None else [address, ipv4]
    tries = 1 if address.port else _FREE_PORTS_TRIED
    while True:
        tries -= 1
        try:
            return _listen_at(addresses, transparent, overlapping)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not tries:
                raise


def _listen_at(
    addresses: list[Address], transparent: bool, overlapping: Collection[socket.socket]
) -> list[socket.socket]:
    """Open sockets at one port; for port 0, at a port that is free for the first of them."""
    opened: list[socket.socket] = []
    _share_port(overlapping, 1)
    try:
        for address in addresses:
            for family, _, _, _, name in socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                port = opened[0].getsockname()[1] if opened else address.port
                at = (name[0], port, *name[2:])
                opened.append(_listen_tcp(family, at, transparent, shares=bool(overlapping)))
    except OSError:
        for each in opened:
            each.close()
        raise
    finally:
        _share_port(overlapping, 0)
    _share_port(opened, 0)
    return opened


def _share_port(opened: Iterable[socket.socket], value: int) -> None:
    """Allow other sockets of this user to bind to the same port, or forbid it again.

    It is allowed only during a bind, so that a second instance started by mistake fails.
    """
    for each in opened:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, value)


def keep_alive(opened: socket.socket) -> None:
    """Enable TCP keepalive, which the connections of a listening socket inherit."""
    if opened.family != socket.AF_UNIX:
        keep_connection_alive(opened.fileno())


def keep_connection_alive(descriptor: int) -> None:
    """Enable TCP keepalive on a connection by IP, given the descriptor of its socket."""
    # A transport's socket makes a `socket.socket` for each option, at several times its cost; for
    # the options of TCP the family, which costs as much, makes no difference.
    bare = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
    try:
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
        bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    finally:
        bare.detach()  # else it closes the descriptor


def set_fast_open(listening: socket.socket, *, on: bool) -> None:
    """Accept data in the SYN (TCP Fast Open, RFC 7413), or stop; not all kernels do."""
    if listening.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            queue = FAST_OPEN_QUEUE if on else 0
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, queue)


def name_of(listening: socket.socket) -> str:
    """Return the actual address of a listening socket as text."""
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    return str(Address(host=name[0], port=name[1]))


def close(sockets: list[socket.socket], address: Address) -> None:
    """Close the sockets of an address, and remove the file of a Unix socket.

    A file of another process that has replaced it is kept.
    """
    for each in sockets:
        # While the socket is open, no other file has its inode.
        if isinstance(each, UnixSocket) and each.made == _file_at(address.path):
            with contextlib.suppress(OSError):
                Path(address.path).unlink()
        each.close()


def adopt(descriptor: int) -> socket.socket:
    """Return a listening socket that another process has made, given its descriptor.

    Other processes accept from it, too, so it must never be blocking, not even for a moment:
    non-blocking mode is shared, and their `accept` would wait.
    """
    found = socket.socket(fileno=descriptor)
    found.setblocking(False)
    if found.family != socket.AF_UNIX:
        return found
    path = os.fsdecode(found.getsockname())
    unix = UnixSocket(fileno=found.detach())
    unix.setblocking(False)
    unix.made = _file_at(path)
    return unix


def set_mode(opened: list[socket.socket], address: Address, mode: int) -> None:
    """Set the mode of a Unix socket's file, if it still exists."""
    for each in opened:
        if isinstance(each, UnixSocket) and each.made == _file_at(address.path):
            with contextlib.suppress(OSError):
                Path(address.path).chmod(mode)


def _file_at(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _listen_tcp(
    family: int, name: tuple[str | int, ...], transparent: bool, *, shares: bool
) -> socket.socket:
    with _to_listen(family) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _share_port([opened], int(shares))
        keep_alive(opened)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if transparent:
            set_transparent(opened)
        opened.bind(name)
    return opened


def _listen_unix(path: str, mode: int) -> socket.socket:
    """Open a Unix socket; the file of a process that was killed is replaced."""
    with _alone_in(os.path.dirname(path)), _to_listen(socket.AF_UNIX) as opened:  # noqa: PTH120
        assert isinstance(opened, UnixSocket)
        if _is_dead(path):
            Path(path).unlink(missing_ok=True)
        os.fchmod(opened.fileno(), mode)  # on Linux, the file is created with at most this mode
        opened.bind(path)
        opened.made = _file_at(path)
        Path(path).chmod(mode)
    return opened


@contextlib.contextmanager
def _to_listen(family: int) -> Iterator[socket.socket]:
    """Yield a socket to be bound, then listen; on an error, close it."""
    kind = UnixSocket if family == socket.AF_UNIX else socket.socket
    opened = kind(family, socket.SOCK_STREAM)
    try:
        yield opened
        opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    opened.setblocking(False)


@contextlib.contextmanager
def _alone_in(directory: str) -> Iterator[None]:
    """Lock a directory against other instances, if possible within a short time.

    Without the lock, two instances that start together could both find a dead socket, and the
    second would remove the new file of the first.  Another program may hold the lock for ever.
    """
    try:
        descriptor = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # not readable; if it does not exist, `bind` fails
        yield
        return
    try:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                sleep(_LOCK_INTERVAL_S)
        yield
    finally:
        os.close(descriptor)


def _is_dead(path: str) -> bool:
    """Return whether the file at a path is a Unix socket on which no process listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return stat.S_ISSOCK(Path(path).stat().st_mode)
        except OSError:
            return False
    return False
