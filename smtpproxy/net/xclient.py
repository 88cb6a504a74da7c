"""XCLIENT and XFORWARD: how the client is made known to an MTA that takes the proxy's word for it.

No I/O.  Postfix's XCLIENT_README and XFORWARD_README give the grammar.  Names are not looked up:
the client is said to have none.  LOGIN is never sent: whether somebody is who he says is for the
backend to find out.
"""

from collections.abc import Sequence
from ipaddress import ip_address

from smtpproxy.net.peer import Peer

LINE_LIMIT = 512
"""Octets of one command with its CRLF."""
UNAVAILABLE = b"[UNAVAILABLE]"
_XTEXT_LIMIT = 255
"""Octets of one value at most; a longer HELO name is said to be unavailable."""
_PLAIN = frozenset(range(0x21, 0x7F)) - frozenset(b"+=")


def xtext(octets: bytes) -> bytes:
    """Return octets so that nobody can find the end of the value in them (RFC 3461 section 4)."""
    return b"".join([b"%c" % each if each in _PLAIN else b"+%02X" % each for each in octets])


class Introduction:
    """Introduces one client by `verb`, which is XCLIENT or XFORWARD."""

    def __init__(self, verb: bytes, peer: Peer) -> None:
        self.verb = verb
        self._peer = peer

    def lines(self, attributes: frozenset[bytes], hello: bytes) -> list[bytes]:
        """Return the commands for those attributes that the backend knows; ADDR comes last.

        `hello` is the client's EHLO or HELO line.
        """
        words = [
            name + b"=" + value for name, value in self._values(hello).items() if name in attributes
        ]
        return _in_lines(self.verb, words) or [self.verb + b"\r\n"]

    def _values(self, hello: bytes) -> dict[bytes, bytes]:
        name = xtext(hello[5:].strip())
        values = {
            b"NAME": UNAVAILABLE,
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
        return values | {b"PORT": b"%d" % port, b"ADDR": _address(host)}


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
