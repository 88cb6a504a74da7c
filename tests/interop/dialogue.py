"""Reads a tap's record: what was sent in one group, and whether commands went in lock step."""

import re
from enum import Enum, auto

from tests.interop.tap import Connection

_LAST_LINE = re.compile(rb"(?:\A|\n)(\d{3})(?:[ ][^\n]*)?\r?\n\Z")
_BDAT = re.compile(rb"BDAT +(\d+)", re.IGNORECASE)


def groups(connection: Connection) -> list[bytes]:
    """Return what the client sent between one reply and the next, empty groups left out."""
    found = [b""]
    for chunk in connection.chunks:
        if chunk.from_client:
            found[-1] += chunk.octets
        elif chunk.octets:
            found.append(b"")
    return [group for group in found if group]


def verbs(group: bytes) -> list[bytes]:
    """Return the first word of each line of a group, in upper case."""
    return [line.split(b" ")[0].upper() for line in group.split(b"\r\n")[:-1]]


def verb_groups(connection: Connection) -> list[list[bytes]]:
    """Return the verbs of each group; for a group that begins with content, what follows it."""
    return [verbs(group) for group in groups(connection)]


def half_closed_before_reply(connection: Connection) -> bool:
    """Return whether the client half-closed while the server still owed a reply."""
    ends = [number for number, chunk in enumerate(connection.chunks) if not chunk.octets]
    first = ends[0] if ends else len(connection.chunks)
    later = connection.chunks[first + 1 :]
    return connection.chunks[first].from_client and any(
        chunk.octets and not chunk.from_client for chunk in later
    )


_EXIMS_LAST_WORDS = re.compile(rb"421 [^\n]*[Ll]ost [^\n]* connection\r\n")
_TLS_RECORD_TYPES = range(20, 24)  # RFC 8446 section 5.1


def assert_sealed(connection: Connection) -> None:
    """Fail if anything but EHLO and STARTTLS, or nothing at all, went outside of TLS records.

    Both directions are looked at; one that begins with a record is sealed from the start. Exim
    has the plaintext that would go to a client that is lost.
    """
    sent, answered = connection.sent(), connection.answered()
    if not _is_record(sent):
        plain = re.match(rb"(?i)EHLO [^\n]*\r\nSTARTTLS\r\n", sent)
        assert plain is not None, sent[:80]
        sent = sent[plain.end() :]
        greeting, hello, ready, answered = _split_replies(answered)
        assert [reply[:4] for reply in (greeting, hello, ready)] == [b"220 ", b"250-", b"220 "]
    for octets in (sent, answered):
        assert octets, "nothing was said inside TLS"
        while octets and not _EXIMS_LAST_WORDS.fullmatch(octets):
            assert _is_record(octets), f"outside of TLS: {octets[:80]!r}"
            octets = octets[5 + int.from_bytes(octets[3:5], "big") :]


def _is_record(octets: bytes) -> bool:
    return len(octets) > 4 and octets[0] in _TLS_RECORD_TYPES and octets[1] == 3


def _split_replies(octets: bytes) -> list[bytes]:
    """Return the first three replies, and what follows them."""
    found = re.match(rb"(?s)(220 .*?\r\n)(250-.*?\r\n250 .*?\r\n)(220 .*?\r\n)(.*)", octets)
    assert found is not None, octets[:300]
    return list(found.groups())


class _Awaits(Enum):
    REPLY = auto()
    COMMAND = auto()
    CONTENT = auto()
    PAYLOAD = auto()


class _LockStep:
    """Follows one connection; `client` and `server` fail at the first octet out of turn."""

    def __init__(self) -> None:
        self.awaits = _Awaits.REPLY
        self.command = b"(greeting)"
        self.unread = b""
        self.reply = b""
        self.payload_left = 0

    def client(self, octets: bytes) -> None:
        assert self.awaits is not _Awaits.REPLY, (
            f"{octets[:80]!r} was sent before the reply to {self.command[:80]!r}"
        )
        self.unread += octets
        if self.awaits is _Awaits.CONTENT:
            self._content()
        elif self.awaits is _Awaits.PAYLOAD:
            self._payload()
        elif b"\n" in self.unread:
            self._command_line()

    def server(self, octets: bytes) -> None:
        self.reply += octets
        match = _LAST_LINE.search(self.reply)
        if match is None:
            return
        code, self.reply = match[1], b""
        if code == b"421":  # may come unasked
            return
        assert self.awaits is _Awaits.REPLY, f"{octets[:80]!r} answers nothing"
        began = code == b"354" and self.command.upper().startswith(b"DATA")
        self.awaits = _Awaits.CONTENT if began else _Awaits.COMMAND
        if began:  # so that a lone dot right at the start is seen too
            self.unread = b"\r\n"

    def _command_line(self) -> None:
        self.command, _, self.unread = self.unread.partition(b"\n")
        bdat = _BDAT.match(self.command)
        if bdat is None:
            self._owed()
            return
        self.payload_left = int(bdat[1])
        self.awaits = _Awaits.PAYLOAD
        self._payload()

    def _content(self) -> None:
        _, end, rest = self.unread.partition(b"\r\n.\r\n")
        if end:
            self.command, self.unread = b"(end of data)", rest
            self._owed()
        else:
            self.unread = self.unread[-4:]

    def _payload(self) -> None:
        taken = min(self.payload_left, len(self.unread))
        self.payload_left -= taken
        self.unread = self.unread[taken:]
        if not self.payload_left:
            self._owed()

    def _owed(self) -> None:
        assert not self.unread, f"{self.unread[:80]!r} was sent after {self.command[:80]!r}"
        self.awaits = _Awaits.REPLY


def assert_lock_step(connection: Connection) -> None:
    """Fail if any octet reached the server before the reply to the command before it.

    Content after a 354 is free; its end counts as a command; so does BDAT with its payload.
    """
    follower = _LockStep()
    for chunk in connection.chunks:
        if not chunk.octets:
            continue
        if chunk.from_client:
            follower.client(chunk.octets)
        else:
            follower.server(chunk.octets)
