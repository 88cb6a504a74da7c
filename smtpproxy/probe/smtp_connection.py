"""A blocking SMTP connection to the server under test.

Every wait has a deadline, and input is bounded by the greatest length of one reply.

The connection can deliver nothing: it never sends the end of data, it sends DATA only if no
recipient has been accepted, and if the server replies 354 it resets the connection without any
content.
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


class NoReplyReason(Enum):
    """Why a reply did not arrive."""

    SILENT = "no reply came in time"
    CLOSED = "it closed the connection"
    BROKEN = "it sent an invalid reply"


@dataclass(frozen=True, slots=True)
class ProbeReply:
    """A complete reply."""

    code: int
    octets: bytes
    """The reply as sent, all lines with their CRLF."""
    seconds: float = 0.0
    """The time from sending the command to the end of the reply."""

    @property
    def is_accepting(self) -> bool:
        """Whether the reply is a 2xx."""
        return 200 <= self.code < 300

    @property
    def line(self) -> str:
        """The first line, escaped for a terminal."""
        first = self.octets.split(b"\r\n", 1)[0]
        return short(b" ".join((first[:3], first[4:])))


class CheckFailed(Exception):
    """A check has no result; the text gives the reason, escaped for a terminal."""


class NoReply(CheckFailed):
    """The expected reply did not arrive.

    Args:
        how: Why not.
        octets: What the server sent instead of a reply.
    """

    def __init__(self, how: NoReplyReason, octets: bytes = b"") -> None:
        super().__init__(f"{how.value}: {short(octets)}" if octets else how.value)
        self.how = how


class OutOfTime(CheckFailed):
    """The whole run has reached its time limit; the server may still have replied in time."""

    def __init__(self) -> None:
        super().__init__("the whole run took too long: set a longer --timeout")


class Refused(CheckFailed):
    """The server refused a command that the check depends on."""

    def __init__(self, what: str, reply: ProbeReply) -> None:
        super().__init__(f"{what} was refused: {reply.line}")
        self.reply = reply


class HandshakeFailed(CheckFailed):
    """The TLS handshake failed.

    Args:
        why: The reason, in words.
        code: OpenSSL's code if the certificate does not verify, else 0.
    """

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.code = code


def short(octets: bytes) -> str:
    """Return bytes as text, escaped for a terminal and cut to a maximum length."""
    text = shown(octets[:_SHOWN])
    return text if len(octets) <= _SHOWN else f"{text}..."


class SmtpConnection:
    """A connection to the server; as a context manager it ends with QUIT, or a reset on errors.

    Every method that waits raises `NoReply` or `OutOfTime`.

    Args:
        connection: The connected socket, which this object closes.
        timeout_s: The longest wait for one reply.
        until: When the whole run must end, on the monotonic clock.
        on_reply: Called with verb and reply of each command that was sent alone.
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
        """The bytes received after the last complete reply."""
        return bytes(self._reader.unread)

    @property
    def certificate(self) -> bytes:
        """The server's certificate in DER; empty without TLS or without a certificate."""
        if isinstance(self._socket, ssl.SSLSocket):
            return self._socket.getpeercert(binary_form=True) or b""
        return b""

    @property
    def own_ip(self) -> str:
        """The local IP address of the connection; empty on a Unix socket."""
        name = self._socket.getsockname()
        return str(name[0]).partition("%")[0] if isinstance(name, tuple) else ""

    def say(self, octets: bytes) -> None:
        """Send commands with their CRLF in one write, so that they can share a segment."""
        _never(_DELIVERS.search(octets) is not None)
        self._send(octets)

    def ask(self, command: bytes) -> ProbeReply:
        """Send one command, given without its CRLF, and return the reply."""
        self.say(command + b"\r\n")
        reply = self.reply()
        verb = command[:4].upper()
        self._has_recipient |= verb == b"RCPT" and reply.is_accepting
        self._report(command, reply)
        return reply

    def ask_for_content(self) -> ProbeReply:
        """Send DATA, on a connection without an accepted recipient, and return the reply.

        Unless the reply is a refusal the connection is reset, since content would have to follow.
        """
        _never(self._has_recipient)
        self._send(b"DATA\r\n")
        try:
            reply = self.reply()
        except CheckFailed:
            self.abort()
            raise
        self._report(b"DATA", reply)
        if reply.code < 400:
            self.abort()
        return reply

    def reply(self, limit_s: float | None = None) -> ProbeReply:
        """Wait for a complete reply.

        Args:
            limit_s: The longest wait for all of it; None for the timeout of the connection.
        """
        limit_s = self._timeout_s if limit_s is None else limit_s
        deadline = min(monotonic() + limit_s, self._until)
        while (found := self._next()) is None:
            self._reader.receive(self._read(deadline))
        return ProbeReply(*found, seconds=monotonic() - self._said_at)

    def secure(self, context: ssl.SSLContext, server_name: str | None) -> None:
        """Make the TLS handshake.

        Args:
            context: The TLS context.
            server_name: The name for SNI and verification; None for neither.

        Raises:
            HandshakeFailed: The handshake failed, and the connection is closed.
            OutOfTime: The run has reached its time limit.
        """
        self._said_at = monotonic()
        # The socket's timeout covers the whole handshake.
        self._socket.settimeout(self._left(self._timeout_s))
        try:
            self._socket.getpeername()  # wrap_socket leaks a socket that has been reset
            self._socket = context.wrap_socket(self._socket, server_hostname=server_name)
        except (OSError, ValueError) as error:  # ValueError: not a valid host name
            self._is_over = True
            if isinstance(error, TimeoutError) and monotonic() >= self._until:
                raise OutOfTime from None
            raise _handshake_failed(error) from None

    def abort(self) -> None:
        """Reset the connection, which the server cannot mistake for an end of data."""
        with contextlib.suppress(OSError):
            linger = struct.pack("ii", 1, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._is_over = True
        self._socket.close()

    def _report(self, command: bytes, reply: ProbeReply) -> None:
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
            raise self._ended(NoReplyReason.CLOSED) from None

    def _next(self) -> tuple[int, bytes] | None:
        try:
            return self._reader.next_reply()
        except BackendViolation as violation:
            raise self._ended(NoReplyReason.BROKEN, violation.octets) from None

    def _read(self, deadline: float) -> bytes:
        self._socket.settimeout(self._left(deadline - monotonic()))
        try:
            octets = self._socket.recv(_READ_OCTETS)
        except TimeoutError:
            raise self._silence() from None
        except OSError:
            raise self._ended(NoReplyReason.CLOSED) from None
        if not octets:
            raise self._ended(NoReplyReason.CLOSED, self.unread)
        return octets

    def _left(self, seconds: float) -> float:
        left = min(seconds, self._until - monotonic())
        if left <= 0:
            raise self._silence()
        return left

    def _silence(self) -> NoReply | OutOfTime:
        is_all_over = monotonic() >= self._until
        return OutOfTime() if is_all_over else NoReply(NoReplyReason.SILENT, self.unread)

    def _ended(self, how: NoReplyReason, octets: bytes = b"") -> NoReply:
        self._is_over = True
        return NoReply(how, octets)


def _never(would_deliver: bool) -> None:
    """Stop at a bug of the probe itself; not an assert, which `python -O` removes."""
    if would_deliver:
        raise AssertionError("the probe must not deliver anything")


def _handshake_failed(error: OSError | ValueError) -> HandshakeFailed:
    if isinstance(error, ssl.SSLCertVerificationError):
        return HandshakeFailed(error.verify_message.rstrip("."), error.verify_code)
    if isinstance(error, TimeoutError):
        return HandshakeFailed("the handshake timed out")
    if isinstance(error, ssl.SSLError) and error.reason:
        return HandshakeFailed(error.reason.lower().replace("_", " "))
    return HandshakeFailed("it closed the connection")
