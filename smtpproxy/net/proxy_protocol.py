"""Reads and makes the header of the PROXY protocol, versions 1 and 2, without I/O.

The header comes first on a connection and names the client that the connecting proxy acts for
(HAProxy's proxy-protocol.txt).  Its content is trusted, so the caller must read it only from
networks that are configured for it.
"""

import re
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from smtpproxy.core.lines import PROXY_HEADERS
from smtpproxy.core.observer import Endpoint
from smtpproxy.net.peer import Peer, end_at, name_of
from smtpproxy.net.proxy_tlvs import (
    NO_SUM,
    BadTlvs,
    ProxyTlvs,
    WrongChecksum,
    make_tlvs,
    read_tlvs,
    summed,
)

V1_LIMIT = 107
"""The limit of a version 1 line, in octets including its CRLF (section 2.1)."""
V2_LIMIT = 4096
"""The limit of a version 2 header, in octets, although its length field allows 65551.

The addresses take 52 octets; the rest are TLVs, of which the names of a TLS certificate are the
largest.
"""
MADE_LIMIT = 232
"""The limit of a version 2 header that is made here, in octets.

Exim refuses a longer one, and takes the rest of it for commands, which a client could have chosen.
"""

_V1_BEGIN, _V2_BEGIN = PROXY_HEADERS
_V1 = re.compile(rb"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) ([0-9]{1,5}) ([0-9]{1,5})")
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n\0]*)?")
_V2_HEAD = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21  # version 2 in the upper four bits
_TCP4, _TCP6 = 0x11, 0x21
_OTHER_FAMILIES = {0x00: 0, 0x12: 12, 0x22: 36, 0x31: 216, 0x32: 216}
"""The octets of the addresses of unspecified, UDP and Unix sockets: valid, but without an address
of an SMTP client."""
_ADDRESSES = {_TCP4: struct.Struct("!4s4sHH"), _TCP6: struct.Struct("!16s16sHH")}


class BadProxyHeader(Exception):
    """The first octets are not a PROXY header, or not a valid one."""


def read_header(octets: bytes) -> tuple[Peer | None, int]:
    """Read a header from the first octets of a connection.

    Returns:
        The client, and the length of the header; 0 if it is incomplete.  The client is None if
        the addresses of the connection apply: for LOCAL, UNKNOWN, and families other than TCP over
        IPv4 and IPv6.

    Raises:
        BadProxyHeader: The header is not valid, even if it is incomplete.
    """
    if octets.startswith(_V1_BEGIN):
        return _read_v1(octets)
    if octets.startswith(_V2_BEGIN):
        return _read_v2(octets)
    if _V1_BEGIN.startswith(octets) or _V2_BEGIN.startswith(octets):
        return None, 0
    raise BadProxyHeader("no PROXY header")


def make_v1(peer: Peer, tlvs: ProxyTlvs | None = None) -> bytes:  # noqa: ARG001  as make_v2
    """Return a version 1 header that names a client, or the proxy itself; it has no TLVs.

    Without addresses the header is UNKNOWN, for the proxy itself on a Unix socket.  An MTA then
    takes the connection for one of the proxy, or refuses the header as Postfix does.
    """
    ends = _ends(peer)
    if ends is None:
        return b"PROXY UNKNOWN\r\n"
    family, source, target = ends
    words = (f"TCP{family}", source[0], target[0], source[1], target[1])
    return "PROXY {} {} {} {} {}\r\n".format(*words).encode("ascii")


def make_v2(peer: Peer, tlvs: ProxyTlvs | None = None) -> bytes:
    """Return a version 2 header that names a client, or the proxy itself, with its checksum.

    Without addresses the command is LOCAL; PROXY without addresses would be valid, too, but Postfix
    refuses it.

    Args:
        peer: The client.
        tlvs: What to say about it besides its addresses.
    """
    ends = _ends(peer)
    if ends is None:
        return summed(_V2_HEAD.pack(_V2_BEGIN, _LOCAL, 0x00, len(NO_SUM)) + NO_SUM)
    family, source, target = ends
    kind = _TCP4 if family == 4 else _TCP6
    body = _ADDRESSES[kind].pack(source[0].packed, target[0].packed, source[1], target[1])
    body += make_tlvs(tlvs, MADE_LIMIT - _V2_HEAD.size - len(body) - len(NO_SUM)) + NO_SUM
    return summed(_V2_HEAD.pack(_V2_BEGIN, _PROXY, kind, len(body)) + body)


def _read_v1(octets: bytes) -> tuple[Peer | None, int]:
    end = octets.find(b"\n", 0, V1_LIMIT) + 1
    if not end:
        if len(octets) >= V1_LIMIT:
            raise BadProxyHeader("version 1 line too long")
        return None, 0
    line = octets[: end - 2]
    if octets[end - 2 : end] != b"\r\n":
        raise BadProxyHeader("version 1 line without CRLF")
    if _V1_UNKNOWN.fullmatch(line):
        return None, end
    found = _V1.fullmatch(line)
    if found is None:
        raise BadProxyHeader("malformed version 1 line")
    family, *hosts = (found[number].decode("ascii") for number in (1, 2, 3))
    source, target = (_v1_host(host, family) for host in hosts)
    return _peer(source, _v1_port(found[4]), target, _v1_port(found[5])), end


def _v1_host(text: str, family: str) -> str:
    kind = IPv4Address if family == "4" else IPv6Address
    try:
        return str(kind(text))
    except ValueError:
        raise BadProxyHeader("invalid address") from None


def _v1_port(text: bytes) -> int:
    port = int(text)
    if port > 65535 or text != b"%d" % port:
        raise BadProxyHeader("invalid port")
    return port


def _read_v2(octets: bytes) -> tuple[Peer | None, int]:
    if len(octets) < _V2_HEAD.size:
        return None, 0
    _, command, family, size = _V2_HEAD.unpack_from(octets)
    end = _V2_HEAD.size + size
    if command not in (_LOCAL, _PROXY):
        raise BadProxyHeader("unknown version or command")
    if family not in _OTHER_FAMILIES and family not in _ADDRESSES:
        raise BadProxyHeader("unknown family")
    if end > V2_LIMIT:
        raise BadProxyHeader("version 2 header too long")
    addresses = _ADDRESSES.get(family)
    taken = _OTHER_FAMILIES[family] if addresses is None else addresses.size
    if command == _PROXY and size < taken:
        raise BadProxyHeader("version 2 header too short for its addresses")
    if len(octets) < end:
        return None, 0
    tlvs = None
    try:
        tlvs = read_tlvs(octets[:end], _V2_HEAD.size + taken)
    except BadTlvs as error:
        # Without a client's address the rest is ignored (section 2.2), unless it shows damage.
        if (addresses is not None and command == _PROXY) or isinstance(error, WrongChecksum):
            raise BadProxyHeader(str(error)) from None
    if addresses is None or command == _LOCAL:
        return None, end
    source, target, source_port, target_port = addresses.unpack_from(octets, _V2_HEAD.size)
    hosts = str(ip_address(source)), str(ip_address(target))
    return _peer(hosts[0], source_port, hosts[1], target_port, tlvs), end


def _peer(
    source: str, source_port: int, target: str, target_port: int, tlvs: ProxyTlvs | None = None
) -> Peer:
    return Peer(name_of(end_at(source, source_port)), end_at(target, target_port), tlvs=tlvs)


_End = tuple[IPv4Address | IPv6Address, int]


def _ends(peer: Peer) -> tuple[int, _End, _End] | None:
    """Return the family and both addresses; if they differ in family, IPv4 is mapped into IPv6."""
    if peer.source is None or peer.target is None:
        return None
    source, target = _end(peer.source), _end(peer.target)
    if source[0].version == target[0].version:
        return source[0].version, source, target
    return 6, _mapped(source), _mapped(target)


def _end(endpoint: Endpoint) -> _End:
    host, port = endpoint
    return ip_address(host.partition("%")[0]), port  # a scope is only valid on this machine


def _mapped(end: _End) -> _End:
    ip, port = end
    return (IPv6Address(f"::ffff:{ip}"), port) if ip.version == 4 else end
