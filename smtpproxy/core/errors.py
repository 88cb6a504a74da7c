"""The two errors of the core, one for each peer that can break the protocol.

Both carry what an observer needs to name the matter (`kind`, a snake_case noun) and the octets that
broke it, cut to a bound.  Neither is ever shown to a peer: what a peer is told is a fixed reply.
"""

LIMITS = {
    "too_many_recipients": "recipients",
    "message_too_big": "message_octets",
    "too_many_errors": "errors",
}
"""Kinds of violation that break no rule of the protocol, but a limit of the settings: its name."""
OCTETS_KEPT = 256
"""How many of the offending octets a violation keeps for the log."""


class Violation(Exception):
    """A peer broke the protocol: `kind` names how, `octets` are what it sent, cut to a bound."""

    def __init__(self, kind: str, octets: bytes = b"") -> None:
        super().__init__(kind)
        self.kind = kind
        self.octets = bytes(octets[:OCTETS_KEPT])


class ClientViolation(Violation):
    """The client broke the protocol; it gets `reply`, and the session ends if `closes`."""

    def __init__(
        self, kind: str, reply: bytes, octets: bytes = b"", *, closes: bool = False
    ) -> None:
        super().__init__(kind, octets)
        self.reply = reply
        self.closes = closes


class BackendViolation(Violation):
    """The backend broke the protocol; the client gets 421 4.3.0 and both sides are closed."""
