"""The two errors of the core, one for each peer that can break the protocol.

Neither is ever shown to a peer, which gets a fixed reply.
"""

from typing import Final

LIMITS = {
    "too_many_recipients": "recipients",
    "message_too_big": "message_bytes",
    "too_many_errors": "consecutive_errors",
}
"""Kinds of violation that break a limit of the settings, not a rule of the protocol -> its name."""
OCTETS_KEPT: Final = 256
"""How many of the offending octets a violation keeps for the log."""


class Violation(Exception):
    """A peer broke the protocol."""

    kind: str
    """How, a snake_case noun."""
    octets: bytes
    """What it sent, cut to OCTETS_KEPT."""

    def __init__(self, kind: str, octets: bytes | bytearray = b"") -> None:
        super().__init__(kind)
        self.kind = kind
        self.octets = bytes(octets[:OCTETS_KEPT])


class ClientViolation(Violation):
    """The client broke the protocol."""

    reply: bytes
    """What the client gets."""
    closes: bool
    """The session ends with it."""

    def __init__(
        self, kind: str, reply: bytes, octets: bytes = b"", *, closes: bool = False
    ) -> None:
        super().__init__(kind, octets)
        self.reply = reply
        self.closes = closes


class BackendViolation(Violation):
    """The backend broke the protocol; the client gets 421 4.3.0 and both sides are closed."""
