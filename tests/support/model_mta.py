"""A model of a legacy MTA, for tests that need a backend with a memory.

It is as strict as OpenSMTPD: an octet that arrives while it owes a reply fails the test.  With
`pipelining` it offers PIPELINING: then the test fails if anything arrives after a command that must
be the last of its group.  `line_ends` makes it as lenient with line ends in content as some MTAs.
"""

import re
from enum import Enum

from smtpproxy.core.exchange import Exchange
from smtpproxy.core.policy import SessionPolicy
from tests.support.pipeline_stage import Stage


class LineEnds(Enum):
    """What ends a line of content, and so which dots are the end of data."""

    STRICT = "strict"
    """CRLF."""
    BARE_LF = "bare LF"
    """LF, with any CR before it."""
    ANY = "any"
    """CR, LF and CRLF."""
    C_STRINGS = "C strings"
    """LF, with one CR before it, and NUL ends the line (OpenSMTPD)."""


_CONTENT_LINE = {
    LineEnds.STRICT: re.compile(rb"(?s:(.*?))\r\n"),
    LineEnds.BARE_LF: re.compile(rb"([^\n]*?)\r*\n"),
    LineEnds.ANY: re.compile(rb"([^\r\n]*)(?:\r\n|\n|\r(?=.)|\r(?=\r))", re.DOTALL),
    LineEnds.C_STRINGS: re.compile(rb"([^\n]*?)\r?\n"),
}

EHLO_REPLY = b"250-mx\r\n250-SIZE 1000\r\n250-XUNKNOWN\r\n250 CHUNKING\r\n"
EHLO_OFFER = b"250-mx\r\n250-SIZE 1000\r\n250-CHUNKING\r\n250 PIPELINING\r\n"
"""The reply to EHLO that a client gets from the proxy for EHLO_REPLY."""


class Mta:
    """The MTA.  It quotes each command in its reply, so that replies show their command.

    Attributes:
        commands: All commands read.
        messages: The content of the messages accepted.
        owed: The replies not sent yet.
        octets: All octets received.
    """

    def __init__(
        self,
        line_ends: LineEnds = LineEnds.STRICT,
        *,
        pipelining: bool = False,
        xforward: bool = False,
    ) -> None:
        self._pipelining = pipelining
        self._xforward = xforward
        self._stands_last = True  # the command whose reply is owed
        self._line = _CONTENT_LINE[line_ends]
        self._c_strings = line_ends is LineEnds.C_STRINGS
        self._unread = b""
        self._state = "commands"
        self._lines: list[bytes] = []
        self._chunks = b""
        self._payload = 0
        self._last_chunk = False
        self._recipients = 0
        self.commands: list[bytes] = []
        self.messages: list[bytes] = []
        self.owed: list[bytes] = [b"220 mx ESMTP\r\n"]
        self.octets = b""

    def receive(self, octets: bytes) -> None:
        """Process octets from the proxy or a client."""
        assert not self._must_wait, f"{octets!r} while {self.owed!r} is owed"
        self.octets += octets
        self._unread += octets
        while self._unread and self._step():
            assert not (self._must_wait and self._unread), f"{self._unread!r} after a command"

    @property
    def _must_wait(self) -> bool:
        return bool(self.owed) and (self._stands_last or not self._pipelining)

    def answer(self) -> bytes:
        """Send the oldest reply that is owed."""
        return self.owed.pop(0)

    def _step(self) -> bool:
        if self._state == "content":
            return self._read_content()
        if self._state == "payload":
            return self._read_payload()
        line, end, rest = self._unread.partition(b"\r\n")
        if not end:
            return False
        self._unread = rest
        if self._state == "auth":
            self._state = "commands"
            self._reply(b"235 auth " + line)
        else:
            assert b"\r" not in line, line
            assert b"\n" not in line, line
            self.commands.append(line)
            self._command(line)
        return True

    def _command(self, line: bytes) -> None:
        verb = line.split(b" ")[0].upper()
        refused = b"refused" in line
        self._stands_last = verb not in (b"MAIL", b"SOML", b"RCPT", b"RSET", b"BDAT")
        if verb == b"EHLO":
            offer = b"250-PIPELINING\r\n" if self._pipelining else b""
            offer += b"250-XFORWARD ADDR HELO\r\n" if self._xforward else b""
            self.owed.append(EHLO_REPLY.replace(b"250 ", offer + b"250 "))
        elif verb == b"RCPT":
            self._recipients += not refused
            self._reply((b"550 " if refused else b"250-first\r\n250 ") + line)
        elif verb == b"DATA":
            self._state = "content" if self._recipients else "commands"
            self._reply(b"354 go" if self._recipients else b"554 nobody")
        elif verb == b"BDAT":
            self._payload = int(line.split(b" ")[1])
            self._last_chunk = line.upper().endswith(b" LAST")
            self._state = "payload"
            self._read_payload()
        elif verb == b"AUTH":
            self._state = "auth"
            self._reply(b"334 challenge")
        else:
            self._recipients *= verb not in (b"MAIL", b"RSET", b"HELO")
            self._reply((b"550 " if refused else b"250 ") + line)

    def _read_content(self) -> bool:
        found = self._line.match(self._unread)
        if found is None:
            return False
        self._unread = self._unread[found.end() :]
        line = found[1].split(b"\0")[0] if self._c_strings else found[1]
        if line == b".":
            self._take_message(b"250 queued ")
        else:
            self._lines.append(line)
        return True

    def _read_payload(self) -> bool:
        payload, self._unread = self._unread[: self._payload], self._unread[self._payload :]
        self._payload -= len(payload)
        self._chunks += payload
        if self._payload:
            return False
        if self._last_chunk:
            self._take_message(b"250 queued ")
        else:
            self._state = "commands"
            self._reply(b"250 chunk")
        return True

    def _take_message(self, reply: bytes) -> None:
        self._state = "commands"
        self._stands_last = False
        self.messages.append(b"\n".join(self._lines) + self._chunks)
        self._lines, self._chunks = [], b""
        self._recipients = 0
        self._reply(reply + b"%d" % len(self.messages))

    def _reply(self, text: bytes) -> None:
        self.owed.append(text + b"\r\n")


class MtaStage(Stage):
    """A stage whose backend is a model MTA; what the proxy writes reaches it at once."""

    def __init__(self, policy: SessionPolicy, mta: Mta | None = None) -> None:
        super().__init__(policy)
        self.mta = mta or Mta()
        self.pipeline.connect_backend(self.mta.receive)

    def answer(self) -> None:
        """Make the backend send the reply that it owes."""
        self.backend(self.mta.answer())

    def settle(self) -> None:
        """Make the backend reply as long as it owes replies and the session is active."""
        while self.mta.owed and not self.pipeline.ended:
            self.answer()

    def ready(self) -> None:
        """Greet, and accept EHLO, MAIL, RCPT and DATA."""
        self.settle()
        for line in (b"EHLO c", b"MAIL FROM:<a>", b"RCPT TO:<b>", b"DATA"):
            self.client(line + b"\r\n")
            self.settle()


def answered(exchanges: list[Exchange]) -> list[Exchange]:
    """Return the exchanges whose replies the client got."""
    return [exchange for exchange in exchanges if exchange.flushed]


def replies_in(octets: bytes) -> list[bytes]:
    """Cut what a client got into whole replies."""
    return re.findall(rb"(?:\d\d\d-[^\n]*\n)*\d\d\d(?: [^\n]*)?\n", octets)
