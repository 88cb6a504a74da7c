"""Network transparency: connections that come to, or leave from, addresses of other machines.

Linux only, and with CAP_NET_ADMIN.  A client reaches the proxy while it talks to somebody else
either by TPROXY, and then the connection itself has the address that it wanted, or by REDIRECT,
and then the kernel remembers it.
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
    """Let a socket have addresses that are not this machine's, or no more of them.

    Raises OSError if we may not; never for what is as it should be.
    """
    if opened.family == socket.AF_UNIX:
        return
    option = (socket.IPPROTO_IP, _IP_TRANSPARENT)
    if opened.family == socket.AF_INET6:
        option = (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT)
    if opened.getsockopt(*option) != on:
        opened.setsockopt(*option, int(on))


def bind_as(opened: socket.socket, peer: Peer) -> None:
    """Let a connection leave from the client's address; raises OSError if we may not.

    Its port is another one: the client's own connection may use that towards the same server.
    """
    assert peer.source is not None
    set_transparent(opened)
    # So that the port need be free only towards one server: else 28000 connections are all.
    opened.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    opened.bind((peer.source[0], 0))


def with_original_target(peer: Peer, opened: socket.socket, own_port: int) -> Peer:
    """Return the peer with the endpoint that it really wanted, if that is not the proxy itself.

    `own_port` is the proxy's, or 0 if it can't be told: a client that wants it at one of this
    machine's addresses means the proxy, and to connect there would go on for ever.
    """
    if peer.source is None or peer.target is None:
        return peer
    target = redirected_from(opened, is_6=":" in peer.host) or peer.target
    host, port = target
    redirected = target != peer.target or not is_own(host) or port != (own_port or port)
    return Peer(peer.name, target, redirected)


def redirected_from(opened: socket.socket, *, is_6: bool) -> Endpoint | None:
    """Return where the client of a redirected connection wanted to go; None if it was not.

    is_6: the client's address is IPv6; if it is not, the socket may be one for both families.
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
    """Return the server that the client wanted; raises OSError if that is the proxy itself.

    None is the proxy itself, which wants nobody.
    """
    if peer is None or peer.target is None or not peer.redirected:
        raise OSError("the client wanted nobody but the proxy")
    host, port = peer.target
    return Address(host=host, port=port)
