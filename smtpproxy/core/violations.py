"""The two exceptions of the core: a protocol violation by the client, and one by the backend.

Their texts are for the log.  A peer only ever gets a fixed reply.
"""

from typing import Final

LIMITS = {
    "too_many_recipients": "recipients",
    "message_too_big": "message_bytes",
    "too_many_errors": "consecutive_errors",
}
"""The setting under `limits`, by the kind of violation that exceeds it."""
OCTETS_KEPT: Final = 256
"""How many of the offending octets a violation keeps for the log."""


class Violation(Exception):
    """A peer violated the protocol or exceeded a limit."""

    kind: str
    """The kind of violation, a snake_case noun."""
    octets: bytes
    """What the peer sent, cut to `OCTETS_KEPT`."""

    def __init__(self, kind: str, octets: bytes | bytearray = b"") -> None:
        super().__init__(kind)
        self.kind = kind
        self.octets = bytes(octets[:OCTETS_KEPT])


class ClientViolation(Violation):
    """The client violated the protocol or exceeded a limit."""

    reply: bytes
    """The reply to the client, with its CRLF."""
    closes: bool
    """Whether the session ends after the reply."""

    def __init__(
        self, kind: str, reply: bytes, octets: bytes = b"", *, closes: bool = False
    ) -> None:
        super().__init__(kind, octets)
        self.reply = reply
        self.closes = closes


class BackendViolation(Violation):
    """The backend violated the protocol: the client gets 421 4.3.0, and both sides are closed."""
