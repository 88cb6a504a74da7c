"""XCLIENT and XFORWARD: how the backend learns who the client is (Postfix's own extensions).

XCLIENT is sent once, before the client's EHLO is answered: the backend then takes the session for
one with that client.  XFORWARD is sent before each message, since the backend forgets it with the
message (Postfix's XFORWARD_README); it is for the backend's log only.
"""

from collections.abc import Sequence
from typing import Protocol


class AttributeCommands(Protocol):
    """How a client is made known to the backend."""

    verb: bytes
    """XCLIENT, without which the session fails, or XFORWARD, which is for the backend's log."""

    def lines(self, attributes: frozenset[bytes], ehlo: bytes) -> Sequence[bytes]:
        """Return the commands to send.

        Args:
            attributes: Those that the backend's EHLO reply offers, in capitals.
            ehlo: The client's EHLO or HELO line.
        """


class Xforward:
    """The proxy's own XFORWARD commands before each message."""

    __slots__ = ("_next", "lines")

    lines: Sequence[bytes]
    """The commands; empty if none are sent."""

    def __init__(self) -> None:
        self.lines = ()
        self._next = 0

    def next_line(self) -> bytes:
        """Return the next command to send before a message; empty when all of them were sent."""
        if self._next >= len(self.lines):
            self._next = 0
            return b""
        self._next += 1
        return self.lines[self._next - 1]
