"""Binding: opens the listening sockets of an address, whoever accepts from them.

Each is for one family.  So a client of `[::]:25` that comes by IPv4 has an IPv4 address, and the
IPv4 half of such a listener can become a listener of its own at a reload.
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
KEEPALIVE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 60, 30, 6
"""A connection that is silent for so long is probed, so often, and is lost after so many.

A NAT or firewall forgets a silent connection after some minutes, the shortest after four; an MTA
may think for ten (RFC 5321 section 4.5.3.2.6).
"""
_LOCK_TRIES, _LOCK_INTERVAL_S = 50, 0.01
_FREE_PORTS_TRIED = 10
"""A port that is free in one family may be taken in the other."""


MODE = 0o600
"""Who may connect to a Unix socket, unless somebody says otherwise: its owner."""


class UnixSocket(socket.socket):
    """A listening socket that has made a file.

    made: the file's device and inode; by now something else may be at its path.
    """

    made: tuple[int, int] | None = None


def listen(
    address: Address,
    *,
    transparent: bool = False,
    with_ipv4: bool = True,
    mode: int = MODE,
    beside: Collection[socket.socket] = (),
) -> list[socket.socket]:
    """Open the sockets of an address: one, or one for each meaning of `localhost` and of `[::]`.

    A transparent one also accepts connections to other machines' addresses.  `with_ipv4` tells
    whether `[::]` is all of IPv4, too; see `ports_on_ipv4`.  `mode` is that of a Unix
    socket's file, whatever the process's mask.  `beside` are listening sockets of ours
    whose addresses may overlap with this one.  Raises OSError, with none left open, if one can't be
    had.
    """
    if address.is_unix:
        return [_listen_unix(address.path, mode)]
    ipv4 = address.all_of_ipv4 if with_ipv4 else None
    addresses = [address] if ipv4 is None else [address, ipv4]
    tries = 1 if address.port else _FREE_PORTS_TRIED
    while True:
        tries -= 1
        try:
            return _listen_at(addresses, transparent, beside)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not tries:
                raise


def _listen_at(
    addresses: list[Address], transparent: bool, beside: Collection[socket.socket]
) -> list[socket.socket]:
    """Open sockets at one port; if it is 0, at one that is free for the first of them."""
    opened: list[socket.socket] = []
    _share_port(beside, 1)
    try:
        for address in addresses:
            for family, _, _, _, name in socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                port = opened[0].getsockname()[1] if opened else address.port
                at = (name[0], port, *name[2:])
                opened.append(_listen_tcp(family, at, transparent, shares=bool(beside)))
    except OSError:
        for each in opened:
            each.close()
        raise
    finally:
        _share_port(beside, 0)
    _share_port(opened, 0)
    return opened


def _share_port(opened: Iterable[socket.socket], value: int) -> None:
    """Let other sockets of this user be bound to the port, or let none.

    Never for longer than it takes: a second instance, begun by mistake, must fail.
    """
    for each in opened:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, value)


def keep_alive(opened: socket.socket) -> None:
    """Have TCP probe a silent connection; what a listening socket accepts inherits it."""
    if opened.family == socket.AF_UNIX:
        return
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def name_of(listening: socket.socket) -> str:
    """Return the address that a socket really has, as `listening` tells it."""
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    return str(Address(host=name[0], port=name[1]))


def close(sockets: list[socket.socket], address: Address) -> None:
    """Close the sockets of an address, and leave no file of a Unix socket behind.

    What is at its path by now may be another's, who has replaced it.
    """
    for each in sockets:
        # While it is open, no other file gets its inode.
        if isinstance(each, UnixSocket) and each.made == _file_at(address.path):
            with contextlib.suppress(OSError):
                Path(address.path).unlink()
        each.close()


def adopt(descriptor: int) -> socket.socket:
    """Return the listening socket that another process has made, with the file at its path.

    Others accept from it, too.  So it is never set to block, not even for the moment in which a
    copy that `dup` makes takes over what this object believes: an `accept` of theirs would wait.
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
    """Set the mode of a Unix socket's file, if it is still there."""
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
    """Bind a socket, in place of one that a proxy which was killed has left behind."""
    with _alone_in(os.path.dirname(path)), _to_listen(socket.AF_UNIX) as opened:  # noqa: PTH120
        assert isinstance(opened, UnixSocket)
        if _is_dead(path):
            Path(path).unlink(missing_ok=True)
        os.fchmod(opened.fileno(), mode)  # Linux makes the file with no more than this
        opened.bind(path)
        opened.made = _file_at(path)
        Path(path).chmod(mode)
    return opened


@contextlib.contextmanager
def _to_listen(family: int) -> Iterator[socket.socket]:
    """Give a socket to be bound: then it listens, or is closed if it can't be had."""
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
    """Keep other instances from a directory, but not for long: a stranger may hold the lock.

    Otherwise two that start at once could both find a socket dead, and the second would remove
    what the first has made of it.
    """
    try:
        descriptor = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # it may not be read; if it is not there, `bind` says so
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
    """Tell whether a socket is at the path that nobody serves."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return stat.S_ISSOCK(Path(path).stat().st_mode)
        except OSError:
            return False
    return False
