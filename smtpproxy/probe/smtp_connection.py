"""One connection to the server that is examined: octets go out, replies come back.

It blocks, but every wait has a deadline, and no more is kept of what the server sends than one
reply may have.

It can deliver nothing.  The line that ends a message never leaves it; DATA is said only where no
recipient has been accepted; and where it is answered as if content were to follow, the connection
is reset, with no octet of content sent.
"""

import contextlib
import re
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import Self

from smtpproxy.core.replies import ReplyReader
from smtpproxy.core.violations import BackendViolation
from smtpproxy.timeline.labels import shown

_READ_OCTETS = 4096
_LAST_REPLY_S = 2.0
_SHOWN = 160
_DELIVERS = re.compile(rb"(?im)^(\.|DATA|BDAT|BURL|SEND|SOML|SAML)")


class SendMode(Enum):
    """In which way a reply did not come."""

    SILENT = "no reply came in time"
    CLOSED = "it closed the connection"
    BROKEN = "it sent what is no reply"


@dataclass(frozen=True, slots=True)
class ProbeReply:
    """A reply as the server sent it, and how many seconds after it was asked for."""

    code: int
    octets: bytes
    seconds: float = 0.0

    @property
    def is_accepting(self) -> bool:
        """Whether the command was done."""
        return 200 <= self.code < 300

    @property
    def line(self) -> str:
        """The first line, safe to show."""
        first = self.octets.split(b"\r\n", 1)[0]
        return short(b" ".join((first[:3], first[4:])))


class CheckFailed(Exception):
    """A test told nothing; the text, safe to show, says why."""


class NoReply(CheckFailed):
    """The reply that was waited for did not come; `octets` are what came in its place."""

    def __init__(self, how: SendMode, octets: bytes = b"") -> None:
        super().__init__(f"{how.value}: {short(octets)}" if octets else how.value)
        self.how = how


class OutOfTime(CheckFailed):
    """The examination as a whole has taken too long, which says nothing of the reply waited for."""

    def __init__(self) -> None:
        super().__init__("all of it took too long: a longer --timeout gives more time")


class Refused(CheckFailed):
    """The server refused what had to come before the test."""

    def __init__(self, what: str, reply: ProbeReply) -> None:
        super().__init__(f"{what} was answered {reply.line}")
        self.reply = reply


class HandshakeFailed(CheckFailed):
    """There was no TLS; `code` is OpenSSL's for a certificate that does not verify, or 0."""

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.code = code


def short(octets: bytes) -> str:
    """Return octets as text that does nothing to a terminal, the beginning of it."""
    text = shown(octets[:_SHOWN])
    return text if len(octets) <= _SHOWN else f"{text}..."


class SmtpConnection:
    """A connection, from reply to reply; as a context manager it says QUIT at its end.

    No wait is longer than `timeout_s`, nor does any go beyond `until`.  on_reply is told verb and
    reply of each command that travelled alone.  Whatever waits raises NoReply or OutOfTime.
    """

    def __init__(
        self,
        connection: socket.socket,
        timeout_s: float,
        until: float,
        on_reply: Callable[[str, ProbeReply], None],
    ) -> None:
        self._socket = connection
        self._timeout_s = timeout_s
        self._until = until
        self._on_reply = on_reply
        self._reader = ReplyReader()
        self._said_at = monotonic()
        self._is_over = False
        self._has_recipient = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abort()
        elif not self._is_over:
            with contextlib.suppress(NoReply, OutOfTime):
                self.say(b"QUIT\r\n")
                self.reply(_LAST_REPLY_S)
        self._socket.close()

    @property
    def unread(self) -> bytes:
        """What has come behind the last reply."""
        return bytes(self._reader.unread)

    @property
    def certificate(self) -> bytes:
        """The server's certificate, DER, inside TLS; else, and if it has none, empty."""
        if isinstance(self._socket, ssl.SSLSocket):
            return self._socket.getpeercert(binary_form=True) or b""
        return b""

    @property
    def own_ip(self) -> str:
        """The address of this end; empty on a Unix socket."""
        name = self._socket.getsockname()
        return str(name[0]).partition("%")[0] if isinstance(name, tuple) else ""

    def say(self, octets: bytes) -> None:
        """Send octets in one segment, as far as the network lets them travel together."""
        _never(_DELIVERS.search(octets) is not None)
        self._send(octets)

    def ask(self, command: bytes) -> ProbeReply:
        """Send one command, without its CRLF, and return the reply."""
        self.say(command + b"\r\n")
        reply = self.reply()
        verb = command[:4].upper()
        self._has_recipient |= verb == b"RCPT" and reply.is_accepting
        self._told(command, reply)
        return reply

    def ask_for_content(self) -> ProbeReply:
        """Say DATA where no recipient has been accepted, and return the reply.

        Unless it is a refusal the connection is gone then: whatever came next would be content.
        """
        _never(self._has_recipient)
        self._send(b"DATA\r\n")
        try:
            reply = self.reply()
        except CheckFailed:
            self.abort()
            raise
        self._told(b"DATA", reply)
        if reply.code < 400:
            self.abort()
        return reply

    def reply(self, limit_s: float | None = None) -> ProbeReply:
        """Wait for a reply, however slowly it drips; no longer than `limit_s` or the time limit."""
        limit_s = self._timeout_s if limit_s is None else limit_s
        deadline = min(monotonic() + limit_s, self._until)
        while (found := self._next()) is None:
            self._reader.receive(self._read(deadline))
        return ProbeReply(*found, seconds=monotonic() - self._said_at)

    def secure(self, context: ssl.SSLContext, server_name: str | None) -> None:
        """Begin TLS.  Raises HandshakeFailed; the connection is gone then."""
        self._said_at = monotonic()
        # Python's time limit is for the handshake as a whole.
        self._socket.settimeout(self._left(self._timeout_s))
        try:
            self._socket.getpeername()  # wrap_socket leaks one that has been reset meanwhile
            self._socket = context.wrap_socket(self._socket, server_hostname=server_name)
        except (OSError, ValueError) as error:  # ValueError: a name that can be nobody's
            self._is_over = True
            if isinstance(error, TimeoutError) and monotonic() >= self._until:
                raise OutOfTime from None
            raise _handshake_failed(error) from None

    def abort(self) -> None:
        """Drop the connection: the server sees a reset, which it can't take for an end of data."""
        with contextlib.suppress(OSError):
            linger = struct.pack("ii", 1, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._is_over = True
        self._socket.close()

    def _told(self, command: bytes, reply: ProbeReply) -> None:
        self._on_reply(command.split(b" ", 1)[0].decode().upper(), reply)

    def _send(self, octets: bytes) -> None:
        self._said_at = monotonic()
        self._socket.settimeout(self._left(self._timeout_s))
        try:
            self._socket.sendall(octets)
        except TimeoutError:
            self._is_over = True
            raise self._silence() from None
        except OSError:
            raise self._ended(SendMode.CLOSED) from None

    def _next(self) -> tuple[int, bytes] | None:
        try:
            return self._reader.next_reply()
        except BackendViolation as violation:
            raise self._ended(SendMode.BROKEN, violation.octets) from None

    def _read(self, deadline: float) -> bytes:
        self._socket.settimeout(self._left(deadline - monotonic()))
        try:
            octets = self._socket.recv(_READ_OCTETS)
        except TimeoutError:
            raise self._silence() from None
        except OSError:
            raise self._ended(SendMode.CLOSED) from None
        if not octets:
            raise self._ended(SendMode.CLOSED, self.unread)
        return octets

    def _left(self, seconds: float) -> float:
        left = min(seconds, self._until - monotonic())
        if left <= 0:
            raise self._silence()
        return left

    def _silence(self) -> NoReply | OutOfTime:
        is_all_over = monotonic() >= self._until
        return OutOfTime() if is_all_over else NoReply(SendMode.SILENT, self.unread)

    def _ended(self, how: SendMode, octets: bytes = b"") -> NoReply:
        self._is_over = True
        return NoReply(how, octets)


def _never(would_deliver: bool) -> None:
    """Stop at a mistake of the probe itself; no assert, which `python -O` leaves out."""
    if would_deliver:
        raise AssertionError("a probe delivers nothing")


def _handshake_failed(error: OSError | ValueError) -> HandshakeFailed:
    if isinstance(error, ssl.SSLCertVerificationError):
        return HandshakeFailed(error.verify_message.rstrip("."), error.verify_code)
    if isinstance(error, TimeoutError):
        return HandshakeFailed("the handshake came to no end")
    if isinstance(error, ssl.SSLError) and error.reason:
        return HandshakeFailed(error.reason.lower().replace("_", " "))
    return HandshakeFailed("it closed the connection")
