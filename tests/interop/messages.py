"""The messages that are sent, and how one that arrived is compared with them.

A message is octets with CRLF line ends. MTAs keep it with LF and put trace headers above it; what
stands below those must be the message, octet for octet.
"""

import re
import uuid
from dataclasses import dataclass

# What MTAs add, and nothing else: folded lines belong to the header above them.
_TRACE = re.compile(
    rb"(?:(?:Received|Return-Path|X-Client-Addr|X-Client-Proto|X-Helo-Args|X-Mail-Args|X-Rcpt-Args)"
    rb":[^\n]*\n(?:[ \t][^\n]*\n)*)*"
)


@dataclass(frozen=True)
class Message:
    """A message with a word in its Message-Id by which it is found again."""

    token: str
    octets: bytes

    def as_kept(self) -> bytes:
        """Return the message as an MTA keeps it: LF line ends, the last line ended."""
        kept = self.octets.replace(b"\r\n", b"\n")
        return kept if kept.endswith(b"\n") else kept + b"\n"


@dataclass(frozen=True)
class Delivery:
    """A message as an MTA kept it, trace headers included, and the recipients it kept it for."""

    recipients: frozenset[str]
    kept: bytes

    def without_trace(self) -> bytes:
        """Return what follows the trace headers."""
        match = _TRACE.match(self.kept)
        assert match is not None
        return self.kept[match.end() :]


def message(body: bytes) -> Message:
    """Return a message with all the headers that an MTA would add if they were missing."""
    token = uuid.uuid4().hex
    headers = (
        "Date: Mon, 5 Jan 2026 10:00:00 +0000",
        "From: Sender <sender@sender.example>",
        "To: Recipients <list@rcpt.example>",
        f"Message-Id: <{token}@sender.example>",
        "Subject: interop",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=iso-8859-1",
        "Content-Transfer-Encoding: 8bit",
    )
    return Message(token, "\r\n".join((*headers, "", "")).encode() + body)


def awkward() -> Message:
    """Return a message with everything that relays are known to damage; no newline at its end."""
    lines = (
        b".",
        b"..",
        b".a line that begins with a dot",
        b"...",
        b"",
        b"From the start of an mbox line",
        b"trailing blanks \t ",
        bytes(range(0x80, 0x100)),
        b"QUIT",
        b"x" * 998,
        b"." + b"y" * 2100,
        b". ",
        b"",
        b".last line, without an end",
    )
    return message(b"\r\n".join(lines))


def large(octets: int = 1_000_000) -> Message:
    """Return a message of at least that size, with dots where buffers are likely to end."""
    line = b".%06d " + b"z" * 66 + b"\r\n"
    return message(b"".join(line % number for number in range(octets // 76 + 1)))


def brief(words: bytes = b"hello") -> Message:
    """Return a message of one line."""
    return message(words + b"\r\n")


def recipients(good: int, bad: int = 0) -> list[str]:
    """Return addresses, those that every MTA here refuses spread evenly among the good ones."""
    addresses = [f"good{number}@rcpt.example" for number in range(good)]
    step = max(1, len(addresses) // (bad + 1))
    for number in range(bad):
        addresses.insert((number + 1) * step + number, f"bad{number}@rcpt.example")
    return addresses
