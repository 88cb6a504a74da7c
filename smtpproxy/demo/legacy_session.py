"""One session of the legacy MTA: RFC 5321, one command at a time, with the selected fault.

It records all events with their times, and reads the next command only after it has sent the reply
to the previous one.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import cast

MAX_LINE_OCTETS = 2048
MAX_MESSAGE_OCTETS = 10 * 1024 * 1024


class Happening(Enum):
    """The kind of a recorded event, and what its `octets` are."""

    OPENED = "opened"
    RECEIVED = "received"
    """A command line with its CRLF."""
    CONTENT = "content"
    """The content as received, including the end of data."""
    SENT = "sent"
    """A reply with its CRLF."""
    VIOLATION = "violation"
    """Input that arrived while a reply was owed."""
    LOST = "lost"
    """Input that the MTA discarded because of its fault."""
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Event:
    """One recorded event of a session."""

    at: float
    """The time, on the event loop's clock."""
    what: Happening
    octets: bytes = b""


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message that the MTA accepted."""

    sender: bytes
    recipients: tuple[bytes, ...]
    content: bytes
    """The content without dot-stuffing and end of data."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How an MTA behaves in all its sessions."""

    failing: str
    """Its fault, a key of `legacy.FAILINGS`."""
    hostname: bytes
    delay_s: float
    """How long to wait before each reply."""
    refusal: Callable[[bytes], bytes | None]
    """Returns the refusing reply with CRLF for a recipient, or None to accept it."""


class LegacySession(asyncio.Protocol):
    """One connection to the MTA, with its recorded events and accepted messages."""

    def __init__(self, behaviour: Behaviour, on_closed: "Callable[[LegacySession], None]") -> None:
        self.events: list[Event] = []
        self.messages: list[ReceivedMessage] = []
        self.gone = asyncio.Event()
        self._behaviour = behaviour
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._unread = bytearray()
        self._owed: asyncio.TimerHandle | None = None
        self._opened = False
        self._aborted = False
        self._ended = False
        self._closing = False
        self._greeted: bytes | None = None
        self._in_content = False
        self._searched = 0
        self._sender: bytes | None = None
        self._recipients: list[bytes] = []
        self._last_accepted = False
        self._asked = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the greeting."""
        self._transport = cast(asyncio.Transport, transport)
        self._opened = True
        if self._aborted:
            self._transport.abort()
            return
        self._record(Happening.OPENED)
        self._owe(_reply(220, self._behaviour.hostname, b"SMTP service ready"))

    def data_received(self, octets: bytes) -> None:
        """Read what can be read now, and record input that is too early."""
        if self._owed is not None:
            self._record(Happening.VIOLATION, octets)
        self._unread += octets
        self._read()

    def eof_received(self) -> bool:
        """Answer the commands received so far, then close."""
        self._ended = True
        self._read()
        return True

    def connection_lost(self, _: Exception | None) -> None:
        """Record the end of the session."""
        if self._owed is not None:
            self._owed.cancel()
        self.gone.set()
        self._record(Happening.CLOSED)
        self._on_closed(self)

    def abort(self) -> None:
        """Abort the connection now, or as soon as it is made."""
        self._aborted = True
        if self._opened and not self.gone.is_set():
            self._transport.abort()

    # Input

    def _read(self) -> None:
        while self._owed is None and not self._closing:
            if not (self._read_content() if self._in_content else self._read_command()):
                break
        if self._ended and self._owed is None and not self._closing:
            self._close()

    def _read_command(self) -> bool:
        line, found, rest = self._unread.partition(b"\r\n")
        if not found:
            if len(self._unread) > MAX_LINE_OCTETS:
                self._unread.clear()
                self._owe(_reply(500, b"Line too long"))
                self._close()
            return False
        self._unread = rest
        self._record(Happening.RECEIVED, bytes(line + found))
        if rest:
            self._record(Happening.VIOLATION, bytes(rest))
            if self._behaviour.failing == "opensmtpd":
                self._owe(_reply(500, b"5.5.1 Invalid command: Pipelining not supported"))
                self._close()
                return False
        self._obey(bytes(line))
        return True

    def _read_content(self) -> bool:
        """Read content up to CRLF . CRLF, including the CRLF of DATA (RFC 5321 section 4.1.1.4)."""
        if self._unread.startswith(b".\r\n"):
            raw, size = b"", 3
        else:
            at = self._unread.find(b"\r\n.\r\n", self._searched)
            if at < 0:
                self._searched = max(0, len(self._unread) - 4)
                return False
            raw, size = bytes(self._unread[: at + 2]), at + 5
        self._record(Happening.CONTENT, bytes(self._unread[:size]))
        del self._unread[:size]
        if self._unread:
            self._record(Happening.VIOLATION, bytes(self._unread))
        self._in_content, self._searched = False, 0
        self._end_of_data(raw)
        return True

    # Commands

    def _obey(self, line: bytes) -> None:
        verb, _, parameter = line.partition(b" ")
        verb, parameter = verb.upper(), parameter.strip()
        if b"\n" in line or b"\r" in line or b"\0" in line or len(line) > MAX_LINE_OCTETS:
            self._owe(_reply(500, b"Syntax error, line malformed"))
        elif verb in _COMMANDS and not (verb == b"EHLO" and self._behaviour.failing == "helo-only"):
            _COMMANDS[verb](self, parameter)
            if verb in {b"MAIL", b"DATA"} and self._behaviour.failing == "hand-over":
                self._lose_input()
        elif verb in _NOT_IMPLEMENTED:
            self._owe(_reply(502, verb, b"command not implemented"))
        else:
            self._owe(_reply(500, b"Command unrecognized:", b'"' + line[:60] + b'"'))

    def _greet(self, parameter: bytes, *, extended: bool) -> None:
        if not parameter:
            self._owe(_reply(501, b"EHLO" if extended else b"HELO", b"requires a domain"))
            return
        self._greeted = b"EHLO" if extended else b"HELO"
        self._reset()
        hello = self._behaviour.hostname + b" Hello " + parameter + b", pleased to meet you"
        size = b"SIZE %d" % MAX_MESSAGE_OCTETS
        self._owe(_lines(250, [hello, b"8BITMIME", size, b"HELP"] if extended else [hello]))

    def _ehlo(self, parameter: bytes) -> None:
        self._greet(parameter, extended=True)

    def _helo(self, parameter: bytes) -> None:
        self._greet(parameter, extended=False)

    def _mail(self, parameter: bytes) -> None:
        path = _path(parameter, b"FROM:")
        if self._greeted is None:
            self._owe(_reply(503, b"Send HELO or EHLO first"))
        elif self._sender is not None:
            self._owe(_reply(503, b"Sender already specified"))
        elif path is None:
            self._owe(_reply(501, b"Syntax error in MAIL FROM:<address>"))
        elif refusal := self._refuse_mail_parameters(path[1]):
            self._owe(refusal)
        else:
            self._sender = path[0]
            self._owe(_reply(250, b"<" + path[0] + b">... Sender ok"))

    def _refuse_mail_parameters(self, parameters: list[bytes]) -> bytes | None:
        for parameter in parameters:
            key, _, value = parameter.upper().partition(b"=")
            if self._greeted == b"HELO" or key not in {b"SIZE", b"BODY"}:
                return _reply(555, key, b"parameter not recognized")
            if key == b"BODY" and value not in {b"7BIT", b"8BITMIME"}:
                return _reply(501, b"Syntax error in BODY parameter")
            if key == b"SIZE" and not value.isdigit():
                return _reply(501, b"Syntax error in SIZE parameter")
            if key == b"SIZE" and int(value) > MAX_MESSAGE_OCTETS:
                return _reply(552, b"Message size exceeds the maximum of %d" % MAX_MESSAGE_OCTETS)
        return None

    def _rcpt(self, parameter: bytes) -> None:
        path = _path(parameter, b"TO:")
        if self._sender is None:
            self._owe(_reply(503, b"Need MAIL before RCPT"))
        elif path is None or not path[0]:
            self._owe(_reply(501, b"Syntax error in RCPT TO:<address>"))
        elif path[1]:
            self._owe(_reply(555, path[1][0], b"parameter not recognized"))
        else:
            refusal = self._behaviour.refusal(path[0])
            self._last_accepted = refusal is None
            self._asked = True
            if refusal is None:
                self._recipients.append(path[0])
            self._owe(refusal or _reply(250, b"<" + path[0] + b">... Recipient ok"))

    def _data(self, parameter: bytes) -> None:
        failing = self._behaviour.failing
        welcome = self._last_accepted if failing == "last-recipient" else bool(self._recipients)
        if parameter:
            self._owe(_reply(501, b"DATA takes no parameter"))
        elif self._sender is None:
            self._owe(_reply(503, b"Need MAIL before DATA"))
        elif welcome or failing == "data-accepted":
            self._in_content = True
            self._owe(_reply(354, b'Enter mail, end with "." on a line by itself'))
        elif self._asked:
            self._owe(_reply(554, b"No valid recipients"))
        else:
            self._owe(_reply(503, b"Need RCPT before DATA"))

    def _end_of_data(self, raw: bytes) -> None:
        sender, recipients = self._sender, tuple(self._recipients)
        self._reset()
        assert sender is not None
        if not recipients:
            # RFC 2920 section 3.2, item 4: a message without recipients is not delivered.
            self._owe(_reply(554, b"No valid recipients"))
        elif len(raw) > MAX_MESSAGE_OCTETS:
            self._owe(_reply(552, b"Message exceeds the maximum of %d" % MAX_MESSAGE_OCTETS))
        else:
            content = (b"\r\n" + raw).replace(b"\r\n.", b"\r\n")[2:]
            self.messages.append(ReceivedMessage(sender, recipients, content))
            self._owe(_reply(250, b"AA%05d Message accepted for delivery" % len(self.messages)))

    def _rset(self, _: bytes) -> None:
        self._reset()
        self._owe(_reply(250, b"Reset state"))

    def _noop(self, _: bytes) -> None:
        self._owe(_reply(250, b"OK"))

    def _vrfy(self, parameter: bytes) -> None:
        if parameter:
            self._owe(_reply(252, b"Cannot verify", parameter, b"but will accept it"))
        else:
            self._owe(_reply(501, b"VRFY requires an address"))

    def _help(self, _: bytes) -> None:
        verbs = b" ".join(sorted(_COMMANDS))
        self._owe(_lines(214, [b"Commands:", b"  " + verbs, b"End of HELP info"]))

    def _quit(self, _: bytes) -> None:
        self._owe(_reply(221, self._behaviour.hostname, b"closing connection"))
        self._close()

    # Output and state

    def _reset(self) -> None:
        self._sender = None
        self._recipients = []
        self._last_accepted = False
        self._asked = False

    def _owe(self, reply: bytes) -> None:
        """Send the reply, after the delay if one is set."""
        if self._behaviour.delay_s:
            self._owed = self._loop.call_later(self._behaviour.delay_s, self._send_owed, reply)
        else:
            self._send(reply)

    def _send_owed(self, reply: bytes) -> None:
        self._owed = None
        self._send(reply)
        if self._closing:
            self._transport.close()
        else:
            self._read()

    def _send(self, reply: bytes) -> None:
        self._record(Happening.SENT, reply)
        self._transport.write(reply)
        refused = reply[:1] in {b"4", b"5"}
        failing = self._behaviour.failing
        if failing == "flush-always" or (failing == "flush-on-failure" and refused):
            self._lose_input()

    def _lose_input(self) -> None:
        if self._unread:
            self._record(Happening.LOST, bytes(self._unread))
            self._unread.clear()

    def _close(self) -> None:
        """Stop reading, and close as soon as no reply is owed."""
        self._closing = True
        if self._owed is None:
            self._transport.close()

    def _record(self, what: Happening, octets: bytes = b"") -> None:
        self.events.append(Event(self._loop.time(), what, octets))


_COMMANDS: dict[bytes, Callable[[LegacySession, bytes], None]] = {
    b"EHLO": LegacySession._ehlo,
    b"HELO": LegacySession._helo,
    b"MAIL": LegacySession._mail,
    b"RCPT": LegacySession._rcpt,
    b"DATA": LegacySession._data,
    b"RSET": LegacySession._rset,
    b"NOOP": LegacySession._noop,
    b"VRFY": LegacySession._vrfy,
    b"HELP": LegacySession._help,
    b"QUIT": LegacySession._quit,
}
_NOT_IMPLEMENTED = {b"EXPN", b"TURN", b"SEND", b"SOML", b"SAML", b"ETRN"}


def _reply(code: int, *words: bytes) -> bytes:
    return b"%d %s\r\n" % (code, b" ".join(words))


def _lines(code: int, texts: list[bytes]) -> bytes:
    *first, last = texts
    return b"".join(b"%d-%s\r\n" % (code, text) for text in first) + _reply(code, last)


def _path(parameter: bytes, keyword: bytes) -> tuple[bytes, list[bytes]] | None:
    """Return the address and the parameters of `FROM:<address> ...`; None if malformed."""
    if not parameter.upper().startswith(keyword):
        return None
    path, *parameters = parameter[len(keyword) :].split() or [b""]
    if len(path) < 2 or path[:1] != b"<" or path[-1:] != b">":
        return None
    return path[1:-1], parameters
