"""Replies: the reader for those of the backend, and all replies of the proxy itself.

RFC 5321 section 4.2 gives the grammar.  For old servers the reader also accepts a bare LF as line
end, a code without text, and different codes within a multi-line reply (the last one decides).
Anything else is a violation, since the client could read it differently.
"""

import re
from typing import Final

from smtpproxy.core.violations import BackendViolation

REPLY_LIMIT: Final = 256 * 1024
"""The default limit of one reply, all its lines, in octets.

A single line has no limit: a challenge may have 12288 octets (RFC 4954 section 4).
"""
MOST_AT_ONCE: Final = 4096
"""The longest reply that is recognised without a reader; every session's limit is higher."""

# The proxy's own replies.  The texts are fixed: a peer never sees internal details.
LINE_TOO_LONG = b"500 5.5.2 Error: line too long\r\n"
BAD_SYNTAX = b"500 5.5.2 Error: bad syntax, a command begins with its verb\r\n"
BARE_CR_OR_NUL = b"500 5.5.2 Error: bare <CR> or NUL in command\r\n"
BAD_BDAT = b"501 5.5.4 Error: syntax: BDAT size [LAST]\r\n"
NOT_IMPLEMENTED = b"502 5.5.1 Error: command not implemented\r\n"
BDAT_NOT_OFFERED_NOW = b"451 4.5.1 Error: BDAT is not available now, try again later\r\n"
CHUNK_RECEIVED = b"250 2.0.0 %d bytes received\r\n"
CHUNK_REFUSED_BEFORE = b"503 5.5.1 Error: an earlier chunk of this message was refused\r\n"
AMID_CHUNKS = b"503 5.5.1 Error: the last chunk of a message is missing\r\n"
NOTHING_DONE = b"250 2.0.0 OK\r\n"
QUIT_AMID_CHUNKS = b"221 2.0.0 Bye\r\n"
NOT_LMTP = b"500 5.5.1 Error: this is SMTP, LMTP is not supported\r\n"
NOT_AUTHORIZED = b"550 5.7.0 Error: insufficient authorization\r\n"
NOT_SYNCHRONIZED = b"554 5.5.0 Error: SMTP protocol synchronization\r\n"
STARTTLS_ARGUMENT = b"501 5.5.4 Error: syntax: STARTTLS takes no argument\r\n"
HELLO_FIRST = b"503 5.5.1 Error: send EHLO or HELO first\r\n"
AUTH_BEFORE_TLS = b"503 5.5.1 Error: STARTTLS must come before AUTH\r\n"
TLS_REQUIRED = b"530 5.7.0 Error: must issue a STARTTLS command first\r\n"
TLS_FOR_AUTH = b"538 5.7.11 Error: encryption required for authentication\r\n"
TLS_ACTIVE = b"554 5.5.1 Error: TLS already active\r\n"
XCLIENT_ATTRIBUTE = b"501 5.5.4 Error: bad XCLIENT attribute name\r\n"
XCLIENT_VALUE = b"501 5.5.4 Error: bad XCLIENT attribute value\r\n"
XCLIENT_IN_TRANSACTION = b"503 5.5.1 Error: MAIL transaction in progress\r\n"
READY_FOR_TLS = b"220 2.0.0 Ready to start TLS\r\n"
NO_VALID_RECIPIENTS = b"554 5.5.1 Error: no valid recipients\r\n"
RECIPIENTS_PUT_OFF = b"451 4.5.1 Error: no valid recipients for now, try again later\r\n"
NOT_SMTP = b"221 2.7.0 Error: this is an SMTP server, goodbye\r\n"
TLS_NOT_EXPECTED = b"501 5.5.1 Error: TLS was not expected here\r\n"
PROXY_UNEXPECTED = b"451 4.3.5 Error: PROXY header was not expected here\r\n"
MESSAGE_TOO_BIG = b"552 5.3.4 Error: message too big\r\n"
TOO_MANY_RECIPIENTS = b"452 4.5.3 Error: too many recipients\r\n"
BARE_NEWLINE = {
    "bare_lf": b"550 5.5.2 Error: bare <LF> received\r\n",
    "bare_cr": b"550 5.5.2 Error: bare <CR> received\r\n",
    "bare_nul": b"550 5.5.2 Error: bare <NUL> received\r\n",
}

# RFC 5321 section 4.2.2: the host name follows the code; it replaces %b.
PROBE_ONLY = b"421 4.3.2 %b Error: this address is served as a probe only\r\n"
BACKEND_UNAVAILABLE = b"421 4.4.1 %b Error: mail server not available, try again later\r\n"
BACKEND_FULL = b"421 4.3.2 %b Error: mail server is busy, try again later\r\n"
BACKEND_LOST = b"421 4.4.2 %b Error: connection to mail server lost\r\n"
TIME_LIMIT = b"421 4.4.2 %b Error: timeout exceeded\r\n"
BACKEND_BROKEN = b"421 4.3.0 %b Error: mail server broke the protocol\r\n"
MESSAGE_ABORTED = b"421 4.5.0 %b Error: message aborted, connect again\r\n"
BACKEND_UNFIT = b"421 4.3.5 %b Error: mail server is not set up for this\r\n"
BACKEND_TLS_FAILED = b"421 4.7.5 %b Error: TLS with mail server failed\r\n"
CLIENT_TLS_FAILED = b"421 4.7.0 %b Error: TLS handshake failed\r\n"
DRAINING = b"421 4.3.2 %b Error: service shutting down\r\n"
SLOT_RECLAIMED = b"421 4.3.2 %b Error: connection needed for others, try again later\r\n"
LOOP_DETECTED = b"421 4.4.6 %b Error: mail server leads back here\r\n"
TOO_MANY_ERRORS = b"421 4.7.0 %b Error: too many errors\r\n"
TOO_MANY_SESSIONS = b"421 4.3.2 %b Error: too busy, try again later\r\n"
TOO_MANY_FROM_ADDRESS = b"421 4.7.0 %b Error: too many connections from your address\r\n"
PROXY_MISSING = b"421 4.3.5 %b Error: PROXY header is missing or malformed\r\n"
INTERNAL_ERROR = b"421 4.3.0 %b Error: internal error\r\n"
DRAINED: Final = {"draining": DRAINING, "connection_slot_reclaimed": SLOT_RECLAIMED}
"""What a session ends with that is to end between transactions, by the reason of its end."""


_MULTI_LINE: Final = re.compile(
    rb"([2-5][0-9][0-9])-[^\r\n\0]*\r\n(?:\1-[^\r\n\0]*\r\n)*\1 [^\r\n\0]*\r\n"
)
_ONE_LINE: Final = {b"%d " % code: code for code in range(200, 600)}


def whole_reply_code(octets: bytes) -> int:
    """Return the code if the octets are exactly one well-formed reply, else 0.

    A reply whose lines have different codes gives 0, too; `ReplyReader` reads it.
    """
    size = len(octets)
    if size > MOST_AT_ONCE:
        return 0
    code = _ONE_LINE.get(octets[:4], 0)
    if code and octets.endswith(b"\r\n") and len(octets.translate(None, b"\r\n\0")) == size - 2:
        return code
    whole = _MULTI_LINE.fullmatch(octets)
    return int(whole[1]) if whole else 0


class ReplyReader:
    """Splits the backend's octets into complete replies.

    Args:
        limit: The limit of one reply, all its lines, in octets.
    """

    __slots__ = ("_limit", "_line_start", "_looked_at", "unread")

    unread: bytearray
    """The octets that belong to no complete reply yet."""

    def __init__(self, limit: int = REPLY_LIMIT) -> None:
        self._limit = limit
        self.unread = bytearray()
        self._line_start = 0  # the start of the first line that may be incomplete
        self._looked_at = 0  # where to search for its LF, so that no octet is searched twice

    def receive(self, octets: bytes) -> None:
        """Append octets from the backend; `next_reply` enforces the limit."""
        self.unread += octets

    def next_reply(self) -> tuple[int, bytes] | None:
        """Remove and return the next complete reply.

        Returns:
            Its code and its octets, or None if it is incomplete.  The octets are the backend's
            own, except that a bare LF at a line end becomes CRLF, so that the client cannot read
            two replies as one.

        Raises:
            BackendViolation: The octets are not a reply, or the reply is too long.
        """
        unread, limit = self.unread, self._limit
        while end := unread.find(b"\n", self._looked_at, limit) + 1:
            code, last = read_line(bytes(unread[self._line_start : end]))
            if last:
                reply = bytes(unread[:end])
                del unread[:end]
                self._line_start = self._looked_at = 0
                if reply.count(b"\r") != reply.count(b"\n"):
                    reply = reply.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
                return code, reply
            self._line_start = self._looked_at = end
        if len(unread) >= limit:
            raise BackendViolation("reply_too_long", unread)
        self._looked_at = len(unread)
        return None


def read_line(line: bytes) -> tuple[int, bool]:
    """Return the code of a reply line, and whether it is the last line of its reply.

    Args:
        line: The line with its LF or CRLF.

    Raises:
        BackendViolation: malformed_reply; the line is not `ddd`, `ddd text` or `ddd-text` with a
            code from 200 to 599, or contains a bare CR or NUL.
    """
    text = line[:-2] if line.endswith(b"\r\n") else line[:-1]
    code, mark = text[:3], text[3:4]
    if (
        len(code) == 3
        and code.isdigit()
        and b"2" <= code[:1] <= b"5"
        and mark in {b" ", b"-", b""}
        and b"\r" not in text
        and b"\0" not in text
    ):
        return int(code), mark != b"-"
    raise BackendViolation("malformed_reply", line)
