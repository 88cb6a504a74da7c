"""XCLIENT and XFORWARD: reads and makes the commands that pass a client's address, without I/O.

Postfix's XCLIENT_README and XFORWARD_README give the grammar.  Host names are not looked up: a
client has one only if a proxy in front has named it.  LOGIN, which names an authenticated user, is
accepted from a trusted proxy if it can be passed on by XCLIENT, and belongs to the client that the
same line names: a new ADDR without LOGIN is a client that has not authenticated.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

from smtpproxy.core import replies
from smtpproxy.net.peer import Peer, end_at, name_of

LINE_LIMIT = 512
"""The limit of one command, in octets including its CRLF."""
UNAVAILABLE = b"[UNAVAILABLE]"
_NOT_KNOWN = frozenset((UNAVAILABLE, b"[TEMPUNAVAIL]"))
_XTEXT_LIMIT = 255
"""The limit of one value, in octets; a longer HELO name is sent as `[UNAVAILABLE]`."""
_PLAIN = frozenset(range(0x21, 0x7F)) - frozenset(b"+=")
_XTEXT = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})+")


def xtext(octets: bytes) -> bytes:
    """Return octets in xtext encoding (RFC 3461 section 4)."""
    return b"".join([b"%c" % each if each in _PLAIN else b"+%02X" % each for each in octets])


class BadXclient(Exception):
    """The XCLIENT command is not valid.

    Args:
        reply: The refusal for the client.
    """

    def __init__(self, reply: bytes) -> None:
        super().__init__(reply)
        self.reply = reply


def peer_named_by(peer: Peer, line: bytes, *, login: bool = False) -> Peer:
    """Return the client that an XCLIENT line of a trusted client names.

    Attributes that are not in the line keep their value.  PROTO and HELO are only checked, since
    the named client's EHLO or HELO follows.

    Args:
        peer: The client so far.
        line: The command line.
        login: Whether LOGIN is accepted.

    Raises:
        BadXclient: The line is not valid.
    """
    said: dict[bytes, bytes] = {}
    for word in line.split()[1:]:
        name, _, value = word.partition(b"=")
        name = name.upper()
        if name not in _TAKEN or name in said or (name == b"LOGIN" and not login):
            raise BadXclient(replies.XCLIENT_ATTRIBUTE)
        known = value.upper() not in _NOT_KNOWN
        if not _TAKEN[name].fullmatch(value) or (name == b"ADDR" and not known):
            raise BadXclient(replies.XCLIENT_VALUE)  # the proxy's address would be used instead
        said[name] = value if known else b""
    if not said:
        raise BadXclient(replies.XCLIENT_ATTRIBUTE)
    if b"NAME" in said:
        peer = replace(peer, hostname=said[b"NAME"])
    if b"LOGIN" in said or b"ADDR" in said:
        peer = replace(peer, login=said.get(b"LOGIN", b""))
    return _with_ends(peer, said)


def _with_ends(peer: Peer, said: dict[bytes, bytes]) -> Peer:
    if b"ADDR" in said:
        name = name_of(end_at(_host(said[b"ADDR"]), 0))
        peer = replace(peer, name=name, tlvs=None, by_xclient=True)  # they are of another client
    if said.get(b"PORT") and peer.host:
        peer = replace(peer, name=name_of((peer.host, _port(said[b"PORT"]))))
    if said.get(b"DESTADDR") and not peer.redirected:  # else the target selects the server
        port = _port(said.get(b"DESTPORT") or b"25")
        peer = replace(peer, target=end_at(_host(said[b"DESTADDR"]), port))
    return peer


def _host(value: bytes) -> str:
    is_6 = value[:5].upper() == b"IPV6:"
    try:
        text = value[5 * is_6 :].decode("ascii")
        return str(IPv6Address(text) if is_6 else IPv4Address(text))
    except ValueError:
        raise BadXclient(replies.XCLIENT_VALUE) from None


def _port(value: bytes) -> int:
    port = int(value)
    if port > 65535:
        raise BadXclient(replies.XCLIENT_VALUE)
    return port


_HOST = re.compile(rb"(?i:IPV6:)?[0-9A-Fa-f:.]{2,45}|\[(?i:UNAVAILABLE|TEMPUNAVAIL)\]")
_PORT = re.compile(rb"[0-9]{1,5}|\[(?i:UNAVAILABLE|TEMPUNAVAIL)\]")
_TAKEN = {
    b"NAME": _XTEXT,
    b"LOGIN": re.compile(rb"(?=.{1,%d}$)" % _XTEXT_LIMIT + _XTEXT.pattern),
    b"HELO": _XTEXT,
    b"PROTO": re.compile(rb"(?i:E?SMTP)"),
    b"ADDR": _HOST,
    b"PORT": _PORT,
    b"DESTADDR": _HOST,
    b"DESTPORT": _PORT,
}


class ClientAttributes:
    """Makes the commands that pass one client's address to the backend.

    Args:
        verb: XCLIENT or XFORWARD.
        peer: The client.
    """

    def __init__(self, verb: bytes, peer: Peer) -> None:
        self.verb = verb
        self._peer = peer

    def lines(self, attributes: frozenset[bytes], hello: bytes) -> list[bytes]:
        """Return the commands, with their CRLF; ADDR is the last attribute.

        Args:
            attributes: The attributes in the backend's EHLO reply, in upper case.
            hello: The client's EHLO or HELO line.
        """
        words = [
            name + b"=" + value for name, value in self._values(hello).items() if name in attributes
        ]
        if self._peer.login and self.verb == b"XCLIENT" and {b"LOGIN", b"ADDR"} <= attributes:
            words[-1] = b"LOGIN=" + self._peer.login + b" " + words[-1]  # with ADDR, in one line
        return _in_lines(self.verb, words) or [self.verb + b"\r\n"]

    def _values(self, hello: bytes) -> dict[bytes, bytes]:
        name = xtext(hello[5:].strip())
        values = {
            b"NAME": self._peer.hostname or UNAVAILABLE,
            b"HELO": name if 0 < len(name) <= _XTEXT_LIMIT else UNAVAILABLE,
            b"PROTO": b"ESMTP" if hello[:1] in b"Ee" else b"SMTP",
        }
        if self.verb == b"XFORWARD":
            values[b"SOURCE"] = b"REMOTE"
        elif self._peer.target is not None:
            values[b"DESTADDR"] = _address(self._peer.target[0])
            values[b"DESTPORT"] = b"%d" % self._peer.target[1]
        if self._peer.source is None:
            return values | {b"PORT": UNAVAILABLE, b"ADDR": UNAVAILABLE}
        host, port = self._peer.source
        return values | {b"PORT": b"%d" % port if port else UNAVAILABLE, b"ADDR": _address(host)}


def _address(host: str) -> bytes:
    ip = ip_address(host.partition("%")[0])
    return f"{'IPV6:' if ip.version == 6 else ''}{ip}".encode("ascii")


def _in_lines(verb: bytes, words: Sequence[bytes]) -> list[bytes]:
    lines: list[bytes] = []
    line = verb
    for word in words:
        if len(line) + len(word) + 3 > LINE_LIMIT:
            lines.append(line + b"\r\n")
            line = verb
        line += b" " + word
    return [*lines, line + b"\r\n"] if words else []
