"""Transparent proxying: connections to and from addresses of other machines, on Linux.

It needs CAP_NET_ADMIN.  The firewall redirects clients of another machine to the proxy, either by
TPROXY, where the local address of the connection is the client's target, or by REDIRECT, where
SO_ORIGINAL_DST returns it.
"""

import socket
import struct

from smtpproxy.config.address import Address
from smtpproxy.config.own_addresses import is_own
from smtpproxy.core.observer import Endpoint
from smtpproxy.net.peer import Peer, end_at

# linux/in.h, linux/in6.h; Python has no names for them.
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75
_IP_BIND_ADDRESS_NO_PORT = 24
_SO_ORIGINAL_DST = 80


def set_transparent(opened: socket.socket, *, on: bool = True) -> None:
    """Allow a socket to use addresses of other machines, or forbid it again.

    Raises:
        OSError: A privilege is missing; not if the option has the wanted value already.
    """
    if opened.family == socket.AF_UNIX:
        return
    option = (socket.IPPROTO_IP, _IP_TRANSPARENT)
    if opened.family == socket.AF_INET6:
        option = (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT)
    if opened.getsockopt(*option) != on:
        opened.setsockopt(*option, int(on))


def bind_as(opened: socket.socket, peer: Peer) -> None:
    """Bind a socket to the client's address.

    The port is not the client's, which its own connection may use with the same server.

    Raises:
        OSError: A privilege is missing.
    """
    assert peer.source is not None
    set_transparent(opened)
    bind_from(opened, peer.source[0])


def bind_from(opened: socket.socket, host: str) -> None:
    """Bind a socket that is to be connected to an address of its family, at any port.

    Raises:
        OSError: The address is not one of this machine, and the socket not transparent.
    """
    # A port then has to be free for one server only; else 28,000 connections would be the limit.
    opened.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    opened.bind((host, 0))


def with_original_target(peer: Peer, opened: socket.socket, own_port: int) -> Peer:
    """Return the peer with the target that the client connected to before redirection.

    Args:
        peer: The client as its connection shows it.
        opened: The socket of its connection.
        own_port: The proxy's port, or 0 if not known.  A target with this port at one of this
            machine's addresses is the proxy itself: connecting to it would be a loop.
    """
    if peer.source is None or peer.target is None:
        return peer
    target = redirected_from(opened, is_6=":" in peer.host) or peer.target
    host, port = target
    redirected = target != peer.target or not is_own(host) or port != (own_port or port)
    return Peer(peer.name, target, redirected)


def redirected_from(opened: socket.socket, *, is_6: bool) -> Endpoint | None:
    """Return the original target of a redirected connection; None if it was not redirected.

    Args:
        opened: The socket of the connection.
        is_6: Whether the client's address is IPv6, which an IPv6 socket alone does not show.
    """
    try:
        if is_6:
            octets = opened.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)
            port, address = struct.unpack_from("!2xH4x16s", octets)
            return end_at(socket.inet_ntop(socket.AF_INET6, address), port)
        octets = opened.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16)
        port, address = struct.unpack_from("!2xH4s", octets)
        return end_at(socket.inet_ntop(socket.AF_INET, address), port)
    except OSError:
        return None


def original_target(peer: Peer | None) -> Address:
    """Return the server that the client connected to.

    Args:
        peer: The client; None for the proxy itself.

    Raises:
        OSError: The client connected to the proxy itself.
    """
    if peer is None or peer.target is None or not peer.redirected:
        raise OSError("the client connected to the proxy itself")
    host, port = peer.target
    return Address(host=host, port=port)
